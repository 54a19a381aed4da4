"""How to spawn a model: settings that every method returns a changed copy of, and the spawning itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, SupportsIndex

import msgspec

from harmonia.client.inference import InferenceModel, Settings
from harmonia.client.session import Session
from harmonia.client.spawning import ModelT, Progress, Spawning
from harmonia.client.tools import AnyTool, read_tools
from harmonia.client.training import TrainingModel
from harmonia.errors import InvalidRequestError
from harmonia.protocol.base import JsonObject
from harmonia.protocol.instances import (
    DEFAULT_DRAFT_STEPS,
    MAX_DRAFT_STEPS,
    AdapterSpec,
    Planned,
    PlanSpawn,
    Spawn,
    SpawnSpec,
)

_EXTRA_PARAMS = {"precision": str, "invariant": bool, "seed": int}
_REDACTED = "***"


class BuilderArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What a builder was told."""

    path: str
    kv_cache_len: int | None = None
    tokens_to_generate: int = 2048
    tp: int = 1
    max_seqlen: int | None = None
    tools: tuple[JsonObject, ...] = ()
    api_key: str | None = None
    override_with_scalar_head: bool = False
    use_adapter: bool | None = None
    adapter: AdapterSpec = AdapterSpec()
    keep_layers: tuple[int, ...] | None = None
    with_draft: str | None = None
    num_draft_steps: int | None = None
    extra_params: dict[str, Any] = {}


class ModelBuilder:
    """Describes a model before it is spawned. Every method returns another builder and leaves this one alone."""

    def __init__(self, session: Session, args: BuilderArgs) -> None:
        self._session = session
        self._args = args

    # ----------------------------------------------------------------------------------------------- settings

    def tp(self, tp: int) -> Self:
        """Spread the model over this many devices."""
        if tp < 1:
            raise InvalidRequestError(f"tp must be at least 1, got {tp}", field="tp")
        return self._with(tp=int(tp))

    def max_seqlen(self, max_seqlen: int) -> Self:
        """Longest sequence in tokens; by default the model's own limit, as far as the cache holds it."""
        if max_seqlen < 1:
            raise InvalidRequestError(f"max_seqlen must be at least 1, got {max_seqlen}", field="max_seqlen")
        return self._with(max_seqlen=int(max_seqlen))

    def tools(self, tools: Sequence[AnyTool]) -> Self:
        """Tools that the model may call, as OpenAI's function objects or their JSON text."""
        return self._with(tools=read_tools(tools))

    def api_key(self, api_key: str) -> Self:
        """A key for the model's provider; never shown by `to_python_dict`."""
        return self._with(api_key=api_key)

    def into_scoring_model(self) -> Self:
        """Replace the language head by one that gives a number per token."""
        return self._with(override_with_scalar_head=True)

    def with_adapter(
        self, use_adapter: bool = True, rank: int = 16, alpha: float | None = None, targets: Sequence[str] = ()
    ) -> Self:
        """True: train a new LoRA adapter on a full model, or the adapter that the path holds. False: the whole model.

        rank, alpha (None: twice the rank) and targets (names such as `q_proj`; none: every linear layer) describe a
        new adapter.
        """
        if rank < 1:
            raise InvalidRequestError(f"rank must be at least 1, got {rank}", field="rank")
        spec = AdapterSpec(rank=int(rank), alpha=None if alpha is None else float(alpha), targets=tuple(targets))
        return self._with(use_adapter=bool(use_adapter), adapter=spec)

    def keep_layers(self, layers: Sequence[SupportsIndex]) -> Self:
        """Cut the model down to some of its layers, counted from 0 and in rising order: the beginning of a draft.

        Embedding, last norm and head stay. What comes out says little before it is trained (`train_distillation`);
        `save` writes a complete model of so many layers. Spawning raises InvalidRequestError for layers that the model
        does not have.
        """
        return self._with(keep_layers=tuple(layer.__index__() for layer in layers))

    def with_draft(self, draft_model_path: str, num_draft_steps: int = DEFAULT_DRAFT_STEPS) -> Self:
        """Have a smaller model propose up to 1 to 8 tokens per step; answers are the same with it and without.

        draft_model_path: a model, or `ngram` to look up in the conversation what followed the last tokens before.
        Spawning raises TokenizerMismatchError for a draft of another tokenizer. The engine proposes fewer where more
        would not pay; `Timings.spec_dec_acceptance_rate` tells how many were right.
        """
        num_draft_steps = num_draft_steps.__index__()
        if num_draft_steps < 1:
            raise InvalidRequestError(f"num_draft_steps must be at least 1 (got {num_draft_steps})")
        if num_draft_steps > MAX_DRAFT_STEPS:
            raise InvalidRequestError(f"num_draft_steps must be at most {MAX_DRAFT_STEPS} (got {num_draft_steps})")
        return self._with(with_draft=draft_model_path, num_draft_steps=num_draft_steps)

    def extra_params(self, **params: Any) -> Self:
        """Further settings: `precision` (a name that the worker knows), `invariant` (True: results that do not depend
        on what else is in a batch, bit for bit) and `seed` of a new adapter."""
        for name, value in params.items():
            kind = _EXTRA_PARAMS.get(name)
            if kind is None:
                raise InvalidRequestError(f"unknown extra parameter '{name}'; there are {', '.join(_EXTRA_PARAMS)}")
            if not isinstance(value, kind):
                raise InvalidRequestError(f"extra parameter '{name}' must be {kind.__name__}, got {value!r}")
        return self._with(extra_params={**self._args.extra_params, **params})

    def to_python_dict(self) -> dict[str, Any]:
        """All settings as plain data that may be logged: keys of providers are left out."""
        args: dict[str, Any] = msgspec.to_builtins(self._args)
        args["adapter"] = msgspec.structs.asdict(self._args.adapter) if self._args.use_adapter else None
        args["adapter_mode"] = args.pop("use_adapter")
        if self._args.api_key is not None:
            args["api_key"] = _REDACTED
        return args

    def _with(self, **changes: Any) -> Self:
        return type(self)(self._session, msgspec.structs.replace(self._args, **changes))

    # ------------------------------------------------------------------------------------------ will it fit?

    async def plan_train(self, max_batch_size: int) -> JsonObject:
        """The table of bytes that `spawn_train` would need; InsufficientMemoryError if it would not fit."""
        return await self._plan(self._training_spec(max_batch_size))

    async def plan_inference(self) -> JsonObject:
        """The table of bytes that `spawn_inference` would need; InsufficientMemoryError if it would not fit."""
        return await self._plan(self._spec())

    async def _plan(self, spec: SpawnSpec) -> JsonObject:
        message = PlanSpawn(id=self._session.new_id(), spec=spec)
        return (await self._session.ask(message, Planned)).plan

    # ------------------------------------------------------------------------------------------------ spawning

    async def spawn_train(self, name: str, max_batch_size: int) -> TrainingModel:
        """Make a model that can be trained, under a name that no other on the worker has.

        max_batch_size: tokens of one micro-batch, and of the longest sample. Memory for it is reserved at once;
        InsufficientMemoryError says what would make it fit.
        """
        return await self._spawn(TrainingModel, name, self._training_spec(max_batch_size))

    async def spawn_inference(self, name: str) -> InferenceModel:
        """Make a model that generates and scores, under a name that no other on the worker has."""
        return await self._spawn(InferenceModel, name, self._spec())

    async def spawn_train_with_progress(self, name: str, max_batch_size: int) -> Spawning[TrainingModel]:
        """`spawn_train`, and how far it is."""
        spec = self._training_spec(max_batch_size)
        return Spawning(lambda progress: self._spawn(TrainingModel, name, spec, progress))

    async def spawn_inference_with_progress(self, name: str) -> Spawning[InferenceModel]:
        """`spawn_inference`, and how far it is."""
        spec = self._spec()
        return Spawning(lambda progress: self._spawn(InferenceModel, name, spec, progress))

    async def _spawn(self, kind: type[ModelT], name: str, spec: SpawnSpec, progress: Progress | None = None) -> ModelT:
        message = Spawn(id=self._session.new_id(), name=name, spec=spec)
        instance = await self._session.make(message, name, progress)
        settings = Settings(max_gen_len=self._args.tokens_to_generate, tools=self._args.tools)
        return kind(instance, settings, self.to_python_dict())

    def _training_spec(self, max_batch_size: int) -> SpawnSpec:
        if max_batch_size < 1:
            raise InvalidRequestError(f"max_batch_size is in tokens and must be at least 1, got {max_batch_size}")
        return msgspec.structs.replace(self._spec(), mode="training", max_batch_size=int(max_batch_size))

    def _spec(self) -> SpawnSpec:
        args = self._args
        return SpawnSpec(
            path=args.path,
            keep_layers=args.keep_layers,
            use_adapter=args.use_adapter,
            adapter=msgspec.structs.replace(args.adapter, seed=args.extra_params.get("seed", args.adapter.seed)),
            scalar_head=args.override_with_scalar_head,
            kv_cache_len=args.kv_cache_len,
            max_seq_len=args.max_seqlen,
            precision=args.extra_params.get("precision"),
            invariant=args.extra_params.get("invariant"),
            tp=args.tp,
            draft=args.with_draft,
            num_draft_steps=args.num_draft_steps,
        )
