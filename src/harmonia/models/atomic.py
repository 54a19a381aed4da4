"""Writing whole folders at once: whoever looks, even after a crash or a power cut, finds the old or the new one.

A folder is written under a hidden name beside its place, forced to the disk, and then trades places with what is there.
While it is written its writer holds a lock on it, which the kernel releases when the process dies however it dies: a
hidden folder that nobody holds is the leftover of a crash, and the next save removes it. Imports no torch.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger

log = get_logger(__name__)

_T = TypeVar("_T")
_WRITING = ".saving-"
_ASIDE = ".replaced-"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV}
_IS_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_AT_FDCWD = -2 if sys.platform == "darwin" else -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
MAX_NAME_BYTES = 255 - len(_ASIDE)
"""Longest name of a folder that `replacing` can write."""


@contextmanager
def replacing(target: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yields an empty folder; when the body ends without an error, it takes the place of `target`.

    num_bytes: what the body is going to write, if known; without so much free space nothing is begun.
    Errors: InvalidRequestError naming path, bytes needed and bytes free when the disk or a quota is full, or what keeps
    the folder from being written. Whatever goes wrong, `target` stays as it was and what was written is removed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        free = shutil.disk_usage(target.parent).free
        if num_bytes > free:
            raise _disk_full(target, num_bytes, free)
        folder, lock = _create(target.parent)
    except OSError as error:
        message = f"cannot save {target}: {error.strerror}; save to a folder that this process may write"
        raise InvalidRequestError(message, path=str(target)) from error
    try:
        yield folder
        _sync_tree(folder)
        _put(folder, target)
        _sync(target.parent)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        needed = max(num_bytes, _size(folder))
        _remove(folder)
        raise _disk_full(target, needed, shutil.disk_usage(target.parent).free) from error
    finally:
        # After success this is what stood at the target before.
        _remove(folder)
        os.close(lock)


def surviving(target: Path) -> Path:
    """`target`, or what stood there if a crash interrupted its replacement where the system cannot exchange folders."""
    aside = _aside(target)
    return aside if not os.path.lexists(target) and os.path.lexists(aside) else target


def is_temporary(path: Path) -> bool:
    """Whether this is the working name of a save rather than something saved."""
    return path.name.startswith((_WRITING, _ASIDE))


def set_aside(folder: Path) -> Iterator[str]:
    """Names of targets in `folder` that a crash left set aside; see `surviving`."""
    return (path.name.removeprefix(_ASIDE) for path in folder.glob(f"{_ASIDE}*"))


def read_whole(target: Path, read: Callable[[Path], _T]) -> _T:
    """What `read` makes of the folder, again if the folder was replaced meanwhile: never half old and half new."""
    while True:
        before = _identity(target)
        try:
            result = read(surviving(target))
        except Exception:
            if _identity(target) == before:
                raise
            continue
        if _identity(target) == before:
            return result


def exchange(left: Path, right: Path) -> None:
    """Let two paths trade places in one step. Errors: OSError, among them that the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameatx_np" if sys.platform == "darwin" else "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(left), None, str(right))


def _put(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; what was there before gets the name of `folder`."""
    while True:
        try:
            exchange(folder, target)
            return
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _CANNOT_EXCHANGE:
                raise
            _put_in_two_steps(folder, target)
            return
        try:
            folder.rename(target)
            return
        except OSError as error:
            # Somebody else saved under this name in between.
            if error.errno not in _IS_TAKEN:
                raise


def _put_in_two_steps(folder: Path, target: Path) -> None:
    """As network file systems allow it. Between the steps `surviving` finds the old one under another name."""
    aside = _aside(target)
    with _alone_in(target.parent):
        _recover(target)
        with suppress(FileNotFoundError):
            target.rename(aside)
        folder.rename(target)
        _sync(target.parent)
        _remove(aside)


def _recover(target: Path) -> None:
    """Put back what a crash between the two steps left aside, or drop it if the second step was done."""
    aside = _aside(target)
    if surviving(target) == aside:
        aside.rename(target)
    else:
        _remove(aside)


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Hold the folder that targets stand in: one replacement in two steps at a time."""
    lock = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int) -> None:
    # Where folders cannot be locked nobody can claim one either, so leftovers stay and nothing is lost.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _aside(target: Path) -> Path:
    return target.with_name(_ASIDE + target.name)


def _create(parent: Path) -> tuple[Path, int]:
    """A new hidden folder and the lock that keeps others from taking it for a leftover."""
    while True:
        folder = parent / f"{_WRITING}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        _lock(lock)
        # In the moment before the lock another save may have removed the folder as a leftover.
        if folder.is_dir():
            return folder, lock
        os.close(lock)


def _remove_leftovers(target: Path) -> None:
    """What crashed saves left behind, of this target and of any other in its folder."""
    if os.path.lexists(_aside(target)):
        with _alone_in(target.parent):
            _recover(target)
    remove_abandoned(target.parent)


def discard(target: Path) -> None:
    """Remove a file, link or folder, which vanishes at once; nothing happens if there is none."""
    doomed = target.parent / f"{_WRITING}{uuid.uuid4().hex}"
    try:
        target.rename(doomed)
    except FileNotFoundError:
        return
    _remove(doomed)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders of saves that did not end; running saves hold their locks."""
    for folder in parent.glob(f"{_WRITING}*"):
        _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    if folder.is_symlink():
        _remove(folder)  # what some target was before it was replaced
        return
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log.warning("removing %s, left by a save that did not end", folder)
        # The lock is held meanwhile: whoever is about to write here waits for it and then sees that the folder is gone.
        _remove(folder)
    except OSError:
        return
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(surviving(path))
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns  # numbers of deleted folders are used again


def _disk_full(target: Path, needed: int, free: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"cannot save {target}: it needs {needed:,} bytes or more, and the disk has {free:,} free; "
        "make room or save elsewhere. Nothing was changed",
        path=str(target),
        needed_bytes=needed,
        free_bytes=free,
    )
