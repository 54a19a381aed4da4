"""A model that a recipe asks for."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harmonia.client.builder import ModelBuilder
from harmonia.client.inference import InferenceModel
from harmonia.client.parameters.model_kinds import ModelKind
from harmonia.client.training import TrainingModel
from harmonia.errors import InvalidRequestError, UnknownModelError
from harmonia.protocol.instances import SCHEME

if TYPE_CHECKING:
    from harmonia.client.recipe.context import RecipeContext

KindT = TypeVar("KindT", bound=ModelKind)

_PATHS = ("/", ".", "~")
"""How a path begins; no key of the registry does."""


class _Settings(BaseModel):
    """How a model is deployed by default."""

    model_config = ConfigDict(from_attributes=True)

    tp: PositiveInt | None = None
    kv_cache_len: PositiveInt | None = None
    max_seq_len: PositiveInt | None = None
    tokens_to_generate: PositiveInt | None = None
    extra_params: dict[str, Any] = {}

    @field_validator("extra_params", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) and value else value or {}


class Model(BaseModel, Generic[KindT]):
    """A model by key, address (`model_registry://key`) or path; in a config, its string is enough.

    `tp`, `with_adapter` and the other methods of a builder return a changed copy and take effect in `to_builder`, after
    the model's default settings and the arguments there. They are not part of what the model serialises as: its key.
    """

    model_key: str
    _calls: tuple[Callable[[ModelBuilder], ModelBuilder], ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def validate_from_json(cls, data: Any) -> Any:
        """Take a string for the key."""
        return {"model_key": data} if isinstance(data, str) else data

    @field_validator("model_key")
    @classmethod
    def _is_named(cls, key: str) -> str:
        if not key.strip():
            raise ValueError("the key of a model is empty; give a key of the registry or a path")
        return key

    @model_serializer
    def serialize_model(self) -> str:
        """The key."""
        return self.model_key

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Forms and flags ask for a string."""
        described = "A model: its key in the registry, or a path on the worker's machine."
        return {"type": "string", "title": "Model", "description": described}

    # ----------------------------------------------------------------------------------- settings of the builder

    def tp(self, tp: int) -> Self:
        """Spread the model over this many devices."""
        return self._record("tp", tp)

    def max_seqlen(self, max_seqlen: int) -> Self:
        """Longest sequence in tokens, instead of the one that the model is deployed with."""
        return self._record("max_seqlen", max_seqlen)

    def with_adapter(self, use_adapter: bool = True) -> Self:
        """Train a LoRA adapter instead of all weights."""
        return self._record("with_adapter", use_adapter)

    def with_draft(self, draft_model_path: str, num_draft_steps: int | None = None) -> Self:
        """Let a smaller model propose tokens; None leaves their number to the builder."""
        steps = () if num_draft_steps is None else (num_draft_steps,)
        return self._record("with_draft", draft_model_path, *steps)

    def into_scoring_model(self) -> Self:
        """Replace the language head by one that gives a number per token."""
        return self._record("into_scoring_model")

    def extra_params(self, **params: Any) -> Self:
        """Further settings of the builder."""
        return self._record("extra_params", **params)

    def tools(self, tools: list[str]) -> Self:
        """Tools that the model may call."""
        return self._record("tools", tools)

    def api_key(self, api_key: str) -> Self:
        """A key for the model's provider; neither shown nor serialised."""
        return self._record("api_key", api_key)

    def _record(self, method: str, *args: Any, **kwargs: Any) -> Self:
        changed = self.model_copy()
        changed._calls = (*self._calls, operator.methodcaller(method, *args, **kwargs))
        return changed

    # --------------------------------------------------------------------------------------------- spawning

    async def to_builder(
        self,
        ctx: RecipeContext,
        kv_cache_len: int | None = None,
        tokens_to_generate: int | None = None,
        tp: int | None = None,
        extra_params: dict[str, Any] | None = None,
    ) -> ModelBuilder:
        """A builder with the model's default settings, each of which an argument overrides alone.

        extra_params are merged over the defaults. The settings that were made on this object come last.
        UnknownModelError names the nearest keys.
        """
        uri, settings = await self._resolve(ctx)
        asked = {
            "kv_cache_len": kv_cache_len if kv_cache_len is not None else settings.kv_cache_len,
            "tokens_to_generate": tokens_to_generate if tokens_to_generate is not None else settings.tokens_to_generate,
        }
        builder = ctx.client.model(uri, **{name: value for name, value in asked.items() if value is not None})
        tp = tp if tp is not None else settings.tp
        if tp is not None:
            builder = builder.tp(tp)
        if settings.max_seq_len is not None:
            builder = builder.max_seqlen(settings.max_seq_len)
        if params := {**settings.extra_params, **(extra_params or {})}:
            builder = builder.extra_params(**params)
        for replay in self._calls:
            builder = replay(builder)
        return builder

    async def spawn_inference(
        self,
        name: str,
        ctx: RecipeContext,
        kv_cache_len: int | None = None,
        tokens_to_generate: int | None = None,
        tp: int | None = None,
        extra_params: dict[str, Any] | None = None,
    ) -> InferenceModel:
        """`to_builder`, then `spawn_inference`. RuntimeError names the model; its cause is the error itself."""
        try:
            builder = await self.to_builder(ctx, kv_cache_len, tokens_to_generate, tp, extra_params)
            return await builder.spawn_inference(name)
        except Exception as error:
            raise RuntimeError(f"Failed to spawn inference model '{self.model_key}': {error}") from error

    async def spawn_train(
        self,
        name: str,
        ctx: RecipeContext,
        max_batch_size: int,
        tp: int | None = None,
        extra_params: dict[str, Any] | None = None,
    ) -> TrainingModel:
        """`to_builder`, then `spawn_train`. RuntimeError names the model; its cause is the error itself."""
        try:
            builder = await self.to_builder(ctx, tp=tp, extra_params=extra_params)
            return await builder.spawn_train(name, max_batch_size)
        except Exception as error:
            raise RuntimeError(f"Failed to spawn training model '{self.model_key}': {error}") from error

    async def check(self, ctx: RecipeContext) -> None:
        """Errors as `to_builder`, for a key that nobody knows or default settings that make no sense."""
        await self._resolve(ctx)

    async def _resolve(self, ctx: RecipeContext) -> tuple[str, _Settings]:
        """The address of the weights and the default settings, from the control plane or else from the worker."""
        if ctx.control_plane is not None:
            config = await ctx.control_plane.get_model_config(self.model_key)
            return config.harmony_url, self._read_settings(config)
        uri = _address(self.model_key)
        try:
            info = await ctx.client.describe(uri)
        except UnknownModelError as error:
            if uri.startswith(SCHEME) and Path(self.model_key).exists():
                raise UnknownModelError(f"{error.message}; for the path write ./{self.model_key}") from error
            raise
        return uri, self._read_settings(info.defaults)

    def _read_settings(self, source: object) -> _Settings:
        try:
            return _Settings.model_validate(source)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
            raise InvalidRequestError(
                f"the default settings of model '{self.model_key}' are broken: {found}"
            ) from error

    def __hash__(self) -> int:
        return hash(self.model_key)


def _address(key: str) -> str:
    """What the worker finds a key by: a path becomes absolute, anything but an address a key of the registry."""
    if key.startswith(_PATHS):
        return str(Path(key).expanduser().absolute())
    return key if "://" in key else f"{SCHEME}{key}"
