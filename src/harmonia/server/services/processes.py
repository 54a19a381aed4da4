"""Processes for programs that users bring: nothing of this server's environment, and an end that cannot be put off.

They run as the user that this server runs as. Whoever may upload recipes may run programs on this machine; containers,
or a machine of its own for jobs, are what keeps them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

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
_PR_SET_PDEATHSIG = 1
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
        preexec_fn=_prepare if sys.platform == "linux" else None,
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
            await asyncio.wait_for(process.wait(), patience_s)
    kill_group(process.pid)
    await process.wait()


def _prepare() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_NICE)
