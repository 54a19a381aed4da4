"""Asking a recipe what it takes, in a process of its own: this server never imports one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from harmonia.client.recipe.dependencies import INSTALL_TIMEOUT_SECS, declared, missing
from harmonia.client.recipe.probe import ProbeResult
from harmonia.errors import InvalidRequestError
from harmonia.server.services import processes
from harmonia.server.services.jobs.archives import Files, write_files

MODULE = "harmonia.client.recipe.probe"
_TIMEOUT_S = 60.0
_AT_ONCE = 2


class RecipeProbe:
    """Imports recipes in short-lived processes, at most two at a time."""

    def __init__(self, cache: Path) -> None:
        """cache: where what recipes depend on is installed."""
        self._cache = cache
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def schema(self, files: Files, entrypoint: str) -> dict[str, Any]:
        """The JSON schema of a recipe's input; `InvalidRequestError` for one that cannot be imported."""
        found = await self._ask(files, entrypoint, b"")
        if found.error is not None:
            raise InvalidRequestError(found.error, field="file")
        return found.schema

    async def check(self, files: Files, entrypoint: str, args: Mapping[str, Any]) -> ProbeResult:
        """The keys of the models, data sets and graders that the arguments name, by field.

        `InvalidRequestError` names every argument that the recipe refuses.
        """
        found = await self._ask(files, entrypoint, msgspec.json.encode(args))
        if found.error is not None:
            raise InvalidRequestError(found.error, field=f"args.{found.field}" if found.field else "args")
        return found

    async def _ask(self, files: Files, entrypoint: str, given: bytes) -> ProbeResult:
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="harmonia-recipe-") as name:
                folder, result = Path(name) / "recipe", Path(name) / "result.json"
                await asyncio.to_thread(write_files, files, folder)
                timeout_s = _TIMEOUT_S
                if missing(declared(folder, entrypoint)):
                    timeout_s += INSTALL_TIMEOUT_SECS
                arguments = (str(folder), entrypoint, str(self._cache / "harmonia" / "recipes"), str(result))
                code = await self._run(arguments, Path(name), given, timeout_s)
                try:
                    return msgspec.json.decode(result.read_bytes(), type=ProbeResult)
                except (OSError, msgspec.MsgspecError):
                    raise InvalidRequestError(_ending(code, timeout_s), field="file") from None

    async def _run(self, arguments: tuple[str, ...], home: Path, given: bytes, timeout_s: float) -> int | None:
        variables = processes.environment(home, self._cache, {"CUDA_VISIBLE_DEVICES": ""})
        process = await processes.start(MODULE, *arguments, folder=home, variables=variables)
        try:
            await asyncio.wait_for(process.communicate(given), timeout_s)
            return process.returncode
        except TimeoutError:
            return None
        finally:
            await processes.stop(process, 0.0)


def _ending(code: int | None, timeout_s: float) -> str:
    if code is None:
        return (
            f"importing the recipe took longer than {timeout_s:g} s; whatever shall run belongs into the function with "
            "@recipe_main"
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"importing the recipe ended its process with {how}; it may need more memory or time than importing may take"
