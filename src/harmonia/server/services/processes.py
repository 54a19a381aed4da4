"""Processes for programs that users bring: nothing of this server's environment, and an end that cannot be put off.

They run as the user that this server runs as. Whoever may upload recipes may run programs on this machine; containers,
or a machine of its own for jobs, are what keeps them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from harmonia.fleet.process import end_with, exited

_KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OMP_NUM_THREADS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
"""What programs need of an environment; keys, tokens and addresses of databases are not among it."""
_PROC = Path("/proc")
_LOOK_AGAIN_S = 0.05
_NICE = 5
"""Serving goes first."""


def environment(home: Path, cache: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of such a process. home: a folder of its own; cache: one that all share."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **own, **more}


async def start(
    module: str, *arguments: str, folder: Path, variables: Mapping[str, str], reads: bool = False
) -> asyncio.subprocess.Process:
    """`python -m module` in a folder, leading a process group, that ends with this server.

    reads: whether what it writes, errors included, can be read from `stdout`; else it is lost.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # what lies in the folder is not Python's
        "-m",
        module,
        *arguments,
        cwd=folder,
        env=dict(variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(_prepare, os.getpid()) if sys.platform == "linux" else None,
    )


def kill_group(pid: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def stop(process: asyncio.subprocess.Process, patience_s: float) -> None:
    """Ask a process to end, then make it and all that it started."""
    if process.returncode is None and patience_s:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exited(process), patience_s)
    kill_group(process.pid)
    await exited(process)


async def end_leftovers(variable: str, values: set[str], patience_s: float) -> int:
    """Kill what an earlier server of this user started with a variable of one of these values, whoever started it in
    turn, and wait until it is gone. Returns how many processes that were."""
    ended: set[int] = set()
    give_up_at = asyncio.get_running_loop().time() + patience_s
    while values and (found := await asyncio.to_thread(_with_variable, variable, values)):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended |= found
        if asyncio.get_running_loop().time() > give_up_at:
            break
        await asyncio.sleep(_LOOK_AGAIN_S)
    return len(ended)


def memory_of_group(leader: int) -> int:
    """Bytes that a process and all that it started hold in memory; what several share counts once."""
    total = 0
    for folder in _processes():
        with contextlib.suppress(OSError, ValueError, IndexError):
            # After the name, which may hold anything: state, parent, group.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) != leader:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _with_variable(variable: str, values: set[str]) -> set[int]:
    """Processes that were started with a variable of one of these values, this one left out."""
    wanted = {f"{variable}={value}".encode() for value in values}
    found: set[int] = set()
    for folder in _processes():
        with contextlib.suppress(OSError):  # gone, or somebody else's
            if not wanted.isdisjoint((folder / "environ").read_bytes().split(b"\0")):
                found.add(int(folder.name))
    return found - {os.getpid()}


def _processes() -> Iterator[Path]:
    """Folders of all processes; none where the system has no such folders."""
    return (folder for folder in _PROC.iterdir() if folder.name.isdigit()) if _PROC.is_dir() else iter(())


def _prepare(parent: int) -> None:
    end_with(parent, signal.SIGKILL)
    os.nice(_NICE)
