"""How a process gives up its rights before it runs other people's code.

On Linux: limits on memory, time and files; a filter of system calls, without which there are no sockets, processes or
signals (seccomp); read access to nothing but the interpreter's own folders (Landlock); a network namespace of its own;
and no root. Each is tried, and what the kernel refuses is told.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

NOBODY = 65534
_OPEN_FILES = 64

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_PR_SET_KEEPCAPS, _CAP_DAC_READ_SEARCH, _CAPABILITY_VERSION = 8, 1 << 2, 0x20080522
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class Limits(NamedTuple):
    """memory_bytes: of address space; cpu_seconds: of computing, after which the kernel ends the process."""

    memory_bytes: int
    cpu_seconds: int


def confine(limits: Limits) -> list[str]:
    """Give up every right that a computation does not need, for good; what could not be given up, in words."""
    own_network = _leave_network()
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    files = _hide_files()
    _drop_root(may_read=files)
    _set_limits(limits)
    calls = _filter_calls()
    if not own_network and not calls:
        _remove_sockets()
    return list(_told(own_network, files, calls))


def _told(own_network: bool, files: bool, calls: bool) -> Iterable[str]:
    if not own_network and not calls:
        yield (
            "the network is closed inside the interpreter only, since this host permits neither network namespaces nor "
            "seccomp: isolation is weaker"
        )
    if not calls:
        yield "system calls are not filtered, since this host does not permit seccomp: isolation is weaker"
    if not files:
        yield (
            "files that the server may read can be read, since this host has no Landlock (Linux 5.13): isolation is "
            "weaker"
        )


def _call(function: ctypes._NamedFuncPointer, *args: object) -> int:
    """The result of a function of the C library; OSError instead of -1."""
    result: int = function(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---------------------------------------------------------------------------------------------- limits and identity


def _set_limits(limits: Limits) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _drop_root(*, may_read: bool) -> None:
    """Become nobody: root is exempt from the limit on processes. Others lose what their user namespace gave them.

    may_read: keep the right to read what nobody may not, as the interpreter may be in root's own folder.
    """
    is_root = os.geteuid() == 0
    rights = _CAP_DAC_READ_SEARCH if may_read and is_root else 0
    try:
        if is_root:
            _call(_libc.prctl, _PR_SET_KEEPCAPS, 1, 0, 0, 0)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
        _call(_libc.capset, header, struct.pack("=6I", rights, rights, 0, 0, 0, 0))
    except OSError:  # root of a container that may not change its user; everything else holds for it all the same
        return


def _leave_network() -> bool:
    """Into a network without a single device; as an ordinary user by way of a user namespace."""
    for flags in (_CLONE_NEWNET | _CLONE_NEWIPC, _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC):
        try:
            _call(_libc.unshare, flags)
        except (OSError, AttributeError):
            continue
        return True
    return False


def _remove_sockets() -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError("graders have no network")

    for name in ("socket", "create_connection", "create_server", "getaddrinfo", "fromfd", "SocketType"):
        setattr(socket, name, refuse)
    for name in ("_socket", "_posixsubprocess", "ctypes", "_ctypes"):
        sys.modules[name] = None  # type: ignore[assignment]  # importing it now fails


# ---------------------------------------------------------------------------------------------- Landlock

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_QUERY, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FIRST_RIGHTS = (1 << 13) - 1
_LATER_RIGHTS = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""By the version of the interface that brought them: linking elsewhere, truncating, device controls."""
_CONNECTING, _SCOPES = 3, 3
"""Opening ports and connecting to them; sockets by abstract names and signals, which then end at the process."""


def _hide_files() -> bool:
    """Leave nothing but reading what the interpreter needs."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ABI_QUERY)
    if version < 1:
        return False
    rights = _FIRST_RIGHTS | sum(right for since, right in _LATER_RIGHTS.items() if version >= since)
    rules = struct.pack("=3Q", rights, _CONNECTING, _SCOPES)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _call(_libc.syscall, _CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    try:
        for path in _readable():
            _allow_reading(ruleset, path)
        _call(_libc.syscall, _RESTRICT_SELF, ruleset, 0)
    except OSError:
        return False
    finally:
        os.close(ruleset)
    return True


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, or not ours to read anyway
        return
    try:
        rights = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        _call(_libc.syscall, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _readable() -> set[str]:
    package = Path(__file__).resolve().parents[1]
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(package), *(entry for entry in sys.path if entry)}
    return own | {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"}


# ---------------------------------------------------------------------------------------------- seccomp


_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls the machines whose calls are known here."""
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # name: number on x86-64, on 64-bit ARM
    **{"socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200)},
    **{"clone": (56, 220), "clone3": (435, 435), "fork": (57, None), "vfork": (58, None)},
    **{"execve": (59, 221), "execveat": (322, 281)},
    **{"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424)},
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "process_madvise": (440, 440)},
    **{"pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "ptrace": (101, 117)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "prlimit64": (302, 261)},
    **{"setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122)},
    **{"sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "setrlimit": (160, 164)},
    **{"mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97), "setns": (308, 268)},
    **{"chroot": (161, 51), "pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "memfd_create": (319, 279), "memfd_secret": (447, 447), "kcmp": (312, 272)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "bpf": (321, 280), "perf_event_open": (298, 241)},
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)},
    **{"chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16)},
    **{"utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88)},
    **{"open_by_handle_at": (304, 265), "userfaultfd": (323, 282), "io_uring_setup": (425, 425)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    **{"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180)},
}
_REFUSED_COMMANDS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    # F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP: who gets which signal when a file is ready
    "fcntl": ((72, 25), (8, 10, 15)),
    "ioctl": ((16, 29), (0x8901, 0x8902)),
}
"""By call: its numbers, and the second arguments that are refused."""
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _END = 0x7FFF0000, 0x00050001, 0x80000000
"""Let pass; fail with EPERM; end the process."""
_OTHER_TABLE = 0x40000000
"""From here on x86-64 counts the same calls a second time."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls() -> bool:
    """Refuse what reaches beyond the process."""
    machine = platform.machine()
    if machine not in _AUDIT:
        return False
    column = list(_AUDIT).index(machine)
    commands = {numbers[column]: refused for numbers, refused in _REFUSED_COMMANDS.values()}
    code = _filter_code(_AUDIT[machine], [numbers[column] for numbers in _REFUSED.values()], commands)
    program = _Program(len(code) // 8, code)
    try:
        _call(_libc.prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    except OSError:
        return False
    return True


def _filter_code(audit: int, refused: Iterable[int | None], commands: Mapping[int, Sequence[int]]) -> bytes:
    """Instructions for the kernel. The last three are: allow, refuse, end. commands: see `_REFUSED_COMMANDS`."""
    calls = [call for call in refused if call is not None]
    count = len(calls)
    checks = [_step(_IF_EQUAL, call, if_true=count - index) for index, call in enumerate(calls)]
    decided = [step for call, values in commands.items() for step in _command_code(call, values)]
    return b"".join(
        [
            _step(_LOAD, 4),
            _step(_IF_EQUAL, audit, if_true=1),
            _step(_RETURN, _END),
            _step(_LOAD, 0),
            *decided,
            _step(_IF_AT_LEAST, _OTHER_TABLE, if_true=count + 2),
            *checks,
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _REFUSE),
            _step(_RETURN, _END),
        ]
    )


def _command_code(call: int, refused: Sequence[int]) -> Iterable[bytes]:
    """Instructions that decide about one call by its second argument; other calls go on behind them."""
    count = len(refused)
    yield _step(_IF_EQUAL, call, if_false=count + 3)
    yield _step(_LOAD, 24)
    for index, value in enumerate(refused):
        yield _step(_IF_EQUAL, value, if_true=count - index)
    yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _REFUSE)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
