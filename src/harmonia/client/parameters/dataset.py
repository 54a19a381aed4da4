"""A data set that a recipe asks for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harmonia.client.data.formats import AdaptiveDatasetKind
from harmonia.client.data.reading import read_threads
from harmonia.client.parameters.dataset_kinds import DatasetKind
from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread

if TYPE_CHECKING:
    from harmonia.client.recipe.context import RecipeContext

KindT = TypeVar("KindT", bound=DatasetKind)


class Dataset(BaseModel, Generic[KindT]):
    """A data set by key, or a file of one JSON object per line; in a config, its string is enough.

    A string that ends in .jsonl or names a file is both key and `local_file_path`. `Dataset[Prompt]` and the other
    kinds say what internal rows must hold, `feedback_key` which feedback becomes `metadata["res"]`.
    """

    dataset_key: str
    feedback_key: str | None = None
    local_file_path: str | None = None

    @model_validator(mode="before")
    @classmethod
    def validate_from_json(cls, data: Any) -> Any:
        """Take a string for the key or the file."""
        if not isinstance(data, str):
            return data
        is_file = data.endswith(".jsonl") or _is_file(data)
        return {"dataset_key": data, "local_file_path": data if is_file else None}

    @field_validator("dataset_key")
    @classmethod
    def _is_named(cls, key: str) -> str:
        if not key.strip():
            raise ValueError("the key of a data set is empty; give a key or a .jsonl file")
        return key

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Forms and flags ask for a string; what is dumped is an object."""
        if handler.mode == "serialization":
            return handler(schema)
        described = "A data set: its key, or the path of a .jsonl file."
        return {"type": "string", "title": "Dataset", "description": described, "kind": cls._kind().kind}

    @classmethod
    def _kind(cls) -> DatasetKind:
        """That of `Dataset[Kind]`; mixed for a bare `Dataset`."""
        kinds = [kind for kind in cls.__pydantic_generic_metadata__["args"] if _is_kind(kind)]
        return kinds[0]() if kinds else DatasetKind(AdaptiveDatasetKind.Mixed.value)

    async def load(self, ctx: RecipeContext | None = None) -> list[StringThread]:
        """The conversations, downloaded if there is a control plane, else from `local_file_path`.

        InvalidRequestError names every line that cannot be read; see `data.read_threads`.
        """
        if ctx is None or ctx.control_plane is None:
            return await self._read(self._local_file())
        file = Path(ctx.datasets_dir) / f"{self.dataset_key}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(ctx.control_plane.download_dataset, self.dataset_key, str(file))
        return await self._read(file)

    async def check(self, ctx: RecipeContext) -> None:
        """InvalidRequestError unless the data set exists; of a local file every row must be readable."""
        if ctx.control_plane is None:
            await self._read(self._local_file(), quiet=True)
        else:
            await ctx.control_plane.get_dataset_config(self.dataset_key)

    async def _read(self, file: Path, *, quiet: bool = False) -> list[StringThread]:
        return await read_threads(file, self._kind().formats, self.feedback_key, quiet)

    def _local_file(self) -> Path:
        if self.local_file_path is None:
            raise InvalidRequestError(
                f"data set {self.dataset_key!r} is not a file, and there is no control plane to download it from; "
                "give the path of a .jsonl file",
                field="local_file_path",
            )
        return Path(self.local_file_path).expanduser()

    def __hash__(self) -> int:
        return hash(self.dataset_key)


def _is_kind(argument: Any) -> bool:
    """Whether it is a class of kinds, and no type variable."""
    return isinstance(argument, type) and issubclass(argument, DatasetKind)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # longer than names may be, an unknown user, a null byte
        return False
