"""Models on disk, asked about in a process of their own: the control half loads nothing that reads them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from harmonia.errors import UnavailableError
from harmonia.fleet.process import exited
from harmonia.protocol.facts import Answer, ModelFacts

_PATIENCE_S = 120.0
"""So long a disk may take to say what a model is. What lies in its folder may be no file: some never end."""


async def inspect_model(uri: str, registry: Path) -> ModelFacts:
    """What the files of a path or `model_registry://key` say; takes a fifth of a second.

    Errors: UnknownModelError when nothing is there, UnsupportedModelError naming what is wrong with it,
    UnavailableError when it takes too long.
    """
    failure = f"{uri} could not be read"
    try:
        said = await asyncio.wait_for(_run("harmonia.models.facts", uri, str(registry), failure=failure), _PATIENCE_S)
    except TimeoutError as error:
        raise UnavailableError(
            f"{failure} within {_PATIENCE_S:g} s; see whether its disk answers, and whether all in it are plain files"
        ) from error
    answer = msgspec.json.decode(said, type=Answer)
    if answer.failure is not None:
        raise answer.failure.error()
    assert answer.facts is not None
    return answer.facts


async def remove_models(prefix: str, registry: Path) -> None:
    """Remove the saved models of a registry whose keys begin so. UnavailableError says why it could not be done."""
    if not registry.is_dir():
        return
    failure = f"models {prefix}... could not be removed"
    await _run("harmonia.models.removal", str(registry), prefix, failure=failure)


async def _run(module: str, *arguments: str, failure: str) -> bytes:
    """What `python -m module` prints. failure: what it means if it does not end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await exited(process)
    if process.returncode != 0:
        raise UnavailableError(f"{failure}: {err.decode(errors='replace').strip()}")
    return out
