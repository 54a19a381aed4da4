"""Instances of one engine: made, trained, cloned, saved, loaded, removed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from harmonia.config import EngineConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.engine import Engine
from harmonia.engine.memory import InstanceNeed, Plan
from harmonia.engine.plan import BackboneKey
from harmonia.engine.requests import (
    Answer,
    OptimStepRequest,
    SampleArrays,
    SaveRequest,
    SequenceRequest,
    TrainRequest,
    unpack_ids,
)
from harmonia.engine.saving import Saver
from harmonia.engine.sequence import Drafter
from harmonia.engine.teachers import TeacherModel
from harmonia.engine.training import Barrier, Trainer
from harmonia.errors import HarmoniaError, InvalidRequestError, SequenceTooLongError
from harmonia.log import get_logger
from harmonia.models.decoder import Decoder
from harmonia.models.export import read_scalar_head
from harmonia.models.peft import SavedAdapter, read_saved_adapter
from harmonia.models.source import adapter_base
from harmonia.protocol.base import JsonObject
from harmonia.protocol.instances import (
    DEFAULT_DRAFT_STEPS,
    MAX_DRAFT_STEPS,
    AdapterSpec,
    InstanceInfo,
    SpawnSpec,
)
from harmonia.protocol.losses import LAST_TOKEN, Loss, Tangents
from harmonia.train.samples import Sample
from harmonia.train.scalar_head import ScalarHead
from harmonia.train.weights import TrainedAdapter, TrainedBackbone, copy_decoder, random_adapter

_MAX_PAUSE_S = 10.0
"""How long an answer whose consumer does not read may hold up an update of the weights that it was begun with."""

_MAX_TOKENS = 1 << 30

log = get_logger(__name__)


class Instances:
    """The instances on one backbone, beyond what serving needs to know of them."""

    def __init__(self, engine: Engine, path: str) -> None:
        """path: of the base model."""
        self.engine = engine
        self.path = path
        self.is_permanent = False
        """What bears its backbone's key is served for good."""
        self.needs: dict[str, InstanceNeed] = {}
        self._specs: dict[str, SpawnSpec] = {}
        self._saver = Saver(engine.backbone, path)

    # --------------------------------------------------------------------------------------------- making

    def add(self, name: str, spec: SpawnSpec, need: InstanceNeed) -> None:
        """Make an instance whose memory was planned. Errors leave everything as it was."""
        backbone = self.engine.backbone
        backbone.check_free(name)
        self._check_length(spec)
        saved = backbone.read_adapter(Path(spec.path)) if spec.path != self.path else None
        head = self._head(spec, saved)
        if need.rank:
            self._add_adapter(name, spec, need, saved, head)
        else:
            backbone.add_bare(name, head)
            if need.mode == "training":
                self._train(name, TrainedBackbone(backbone.decoder, head), need)
        backbone.set_drafter(name, _drafter(spec), need.num_draft_steps)
        self.adopt(name, spec, need)

    def _check_length(self, spec: SpawnSpec) -> None:
        longest = self.engine.plan.max_seq_len
        if spec.max_seq_len is not None and not 2 <= spec.max_seq_len <= longest:
            raise InvalidRequestError(
                f"max_seq_len must be between 2 and {longest}, which model and cache of this backbone take, got "
                f"{spec.max_seq_len}; spawn the first instance on it with a larger kv_cache_len",
                field="max_seq_len",
            )

    def adopt(self, name: str, spec: SpawnSpec, need: InstanceNeed) -> None:
        """Keep the books of an instance that the backbone has already."""
        self.needs[name], self._specs[name] = need, spec
        log.info("%s for %s from %s", name, need.mode, spec.path)

    def _add_adapter(
        self, name: str, spec: SpawnSpec, need: InstanceNeed, saved: SavedAdapter | None, head: ScalarHead | None
    ) -> None:
        backbone = self.engine.backbone
        backbone.check_adapter_limit(name)
        bank = backbone.bank
        bank.reserve(need.copies, need.rank)
        if saved is None:
            slot = random_adapter(bank, name, adapter_targets(backbone.decoder, spec.adapter), spec.adapter.seed)
        else:
            slot = bank.load(name, saved.matrices)
        if need.mode == "training":
            slots = slot, bank.copy_slot(slot, name)
            self._train(name, TrainedAdapter(bank, slots, head), need)
        backbone.add_adapter(name, slot, head=head)

    def _train(self, name: str, weights: TrainedAdapter | TrainedBackbone, need: InstanceNeed) -> None:
        assert need.max_batch_size is not None
        self.engine.training.add(Trainer(name, weights, need.max_batch_size))

    def _head(self, spec: SpawnSpec, saved: SavedAdapter | None) -> ScalarHead | None:
        """The scalar head that was saved, or a new one if one is wanted."""
        backbone = self.engine.backbone
        size = backbone.decoder.config.hidden_size
        stored = saved.scalar_head if saved is not None else None
        if saved is None and backbone.source is not None:
            stored = read_scalar_head(backbone.source)
        if stored is not None and (spec.scalar_head or saved is not None):
            head = ScalarHead.loaded(stored, size)
            head.weight_E = head.weight_E.to(backbone.device)
            return head
        return ScalarHead.zeros(size, backbone.device) if spec.scalar_head else None

    # -------------------------------------------------------------------------------------------- training

    def train(self, request: TrainRequest, answer: Answer, teacher: TeacherModel | None = None) -> None:
        """Queue a training call; what is wrong with it is raised here. teacher: of distillation."""
        trainer = self.trainer(request.instance)
        vocab_size = self.engine.backbone.decoder.config.vocab_size
        sides = tuple(_sample(side, request.loss, vocab_size) for side in request.sides)
        limit = self.engine.backbone.decoder.config.max_seq_len
        longest = max((side.num_tokens for side in sides), default=0)
        if longest > limit:
            raise SequenceTooLongError(
                f"the sample has {longest} tokens, and the model knows {limit} positions; leave it out or shorten it",
                num_tokens=longest,
                limit=limit,
            )
        trainer.check(sides, request.loss)
        if teacher is None:
            trainer.add(sides, request.loss, answer)
        else:
            teacher.admit(trainer.name, sides)
            teacher.lend(trainer.add(sides, request.loss, answer, teacher.weights))

    def optim_step(self, request: OptimStepRequest, answer: Answer) -> None:
        """Queue an optimizer step behind the calls before it."""
        for name in ("lr", "wd", "max_grad_norm"):
            value = getattr(request, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidRequestError(f"{name} must be a finite number of at least 0, got {value}", field=name)
        trainer = self.trainer(request.instance)
        self._queue(trainer, answer, lambda: self._step(trainer, request), changes=True)

    def set_optim_step(self, name: str, step: int, answer: Answer) -> None:
        """Set the number of steps done."""
        if step < 0:
            raise InvalidRequestError(f"optim_step counts from 0, got {step}", field="step")
        trainer = self.trainer(name)

        def run() -> JsonObject:
            trainer.weights.parameters.num_steps = step
            return {}

        self._queue(trainer, answer, run, changes=False)

    def begin_score(self, request: SequenceRequest, refuse: Callable[[HarmoniaError], None]) -> None:
        """Score with the weights that the commands before it make."""
        trainer = self.engine.training.trainers.get(request.model)
        if trainer is None or not trainer.will_change:
            self.engine.add(request)
            return

        def run() -> JsonObject:
            self.engine.add(request)
            return {}

        trainer.queue.append(Barrier(_Begin(refuse), run))

    def _step(self, trainer: Trainer, request: OptimStepRequest) -> JsonObject:
        if trainer.num_samples == 0:
            raise InvalidRequestError(f"optim_step of {trainer.name!r} without a train_* call since the last one")
        # The norm is read first: it is the one thing that waits for the device.
        grad_norm = trainer.weights.step(
            lr=request.lr, wd=request.wd, max_grad_norm=request.max_grad_norm, num_samples=trainer.num_samples
        )
        metrics = {**trainer.means(), "lr": request.lr, "grad_norm": grad_norm}
        trainer.drop_sums()
        if math.isfinite(metrics["grad_norm"]):
            self._publish(trainer)
        elif request.skip_nan_gradients:
            log.warning("Skipping optimizer step due to NaN gradients: %s", trainer.name)
            metrics["skipped"] = 1.0
        else:
            raise InvalidRequestError(
                f"the gradient of {trainer.name!r} is {metrics['grad_norm']} (mean loss {metrics['loss']:g} over "
                f"{metrics['num_samples']:.0f} samples): the step was not taken and the gradient is dropped; look for "
                "NaN in rewards or advantages, or pass skip_nan_gradients=True"
            )
        return {"metrics": metrics, **self._progress(trainer)}

    def _publish(self, trainer: Trainer) -> None:
        """Serve the masters as the next version."""
        weights = trainer.weights
        weights.publish()
        head = None if weights.head is None else ScalarHead(weights.head.weight_E.detach().clone())
        self.engine.advance(trainer.name, weights.slot, head)

    def _progress(self, trainer: Trainer) -> JsonObject:
        version = self.engine.backbone.instance(trainer.name).version
        return {"version": version, "optim_step": trainer.weights.parameters.num_steps}

    def _queue(self, trainer: Trainer, answer: Answer, run: Callable[[], JsonObject], *, changes: bool) -> None:
        """changes: the command overwrites what sequences in flight may read."""

        engine, blocked_since = self.engine, list[float]()

        def is_blocked() -> bool:
            if self._saver.is_busy:  # the file must hold one version
                return True
            readers = engine.readers(trainer.weights.idle_slot) if changes else []
            if not readers:
                return False
            now = time.monotonic()
            if not blocked_since:
                blocked_since.append(now)
            if now - blocked_since[0] > _MAX_PAUSE_S:
                engine.give_up_paused(readers)
            return True

        idle_is_backbone = changes and trainer.weights.idle_slot is None
        borrowers = trainer.borrowers() if changes else ()
        trainer.queue.append(
            Barrier(answer, run, is_blocked, changes=changes, needs_quiet=idle_is_backbone, borrowers=borrowers)
        )

    # ------------------------------------------------------------------------------------------ save, load

    def save(self, request: SaveRequest, answer: Answer) -> None:
        """Write an instance into a folder, in a thread: serving goes on meanwhile."""
        trainer = self.engine.training.trainers.get(request.instance)
        self.engine.backbone.instance(request.instance)
        if trainer is not None:
            later = _Later(answer)
            self._queue(trainer, later, lambda: self._begin_saving(request, trainer, answer), changes=False)
        elif request.inference_only:
            self._begin_saving(request, None, answer)
        else:
            raise InvalidRequestError(
                f"{request.instance!r} is not in training and has no optimizer state; save it with inference_only=True"
            )

    def _begin_saving(self, request: SaveRequest, trainer: Trainer | None, answer: Answer) -> JsonObject:
        instance = self.engine.backbone.instance(request.instance)
        parameters = None if trainer is None or request.inference_only else trainer.weights.parameters
        self._saver.begin(request, instance, parameters, answer)
        return {}

    def load(self, name: str, path: str, answer: Answer) -> None:
        """Replace an instance's weights in place, behind the calls before it."""
        trainer = self.trainer(name)
        self._queue(trainer, answer, lambda: self._load(trainer, Path(path)), changes=True)

    def _load(self, trainer: Trainer, path: Path) -> JsonObject:
        self._saver.restore(trainer.weights, path)
        trainer.drop_sums()
        self._publish(trainer)
        return self._progress(trainer)

    # ---------------------------------------------------------------------------------------- other business

    def trainer(self, name: str) -> Trainer:
        """The training state of an instance; `InvalidRequestError` if it is not in training."""
        self.engine.backbone.instance(name)
        found = self.engine.training.trainers.get(name)
        if found is None:
            raise InvalidRequestError(f"{name!r} was spawned for inference; spawn_train gives one that can be trained")
        return found

    def after_calls(self, name: str, answer: Answer, run: Callable[[], JsonObject]) -> None:
        """Run something once the calls of an instance before it are done."""
        trainer = self.engine.training.trainers.get(name)
        if trainer is None:
            answer.done(run())
        else:
            self._queue(trainer, answer, run, changes=False)

    def snapshot(self, name: str, copy: str, need: InstanceNeed) -> None:
        """A frozen copy of an adapter or of the bare backbone."""
        if need.rank:
            self.engine.backbone.bank.reserve(need.copies, need.rank)
        self.engine.backbone.add_snapshot(copy, self.engine.backbone.instance(name))
        self.adopt(copy, msgspec.structs.replace(self._specs[name], mode="inference"), need)

    def copied(self, name: str, need: InstanceNeed, spec: SpawnSpec, plan: Plan) -> Instances:
        """A frozen copy of a whole backbone that is trained under `name`, with one instance on it."""
        old = self.engine.backbone
        decoder = copy_decoder(old.decoder)
        backbone = Backbone(f"{self.path}#{need.name}", decoder, plan, source=old.source)
        backbone.add_bare(need.name, old.instance(name).head)
        new = Instances(Engine(backbone), self.path)
        new.adopt(need.name, spec, need)
        return new

    def remove(self, name: str) -> None:
        """Free an instance; what runs or waits for it fails."""
        trainer = self.engine.training.trainers.get(name)
        idle_slot = None if trainer is None else trainer.weights.idle_slot
        log.info("%s is freed", name)
        self.engine.training.remove(name)
        self.engine.remove_instance(name)
        if idle_slot is not None:
            self.engine.backbone.bank.unload(idle_slot)
        del self.needs[name], self._specs[name]

    def info(self, name: str) -> InstanceInfo:
        """What an instance is."""
        instance, need, spec = self.engine.backbone.instance(name), self.needs[name], self._specs[name]
        trainer = self.engine.training.trainers.get(name)
        return InstanceInfo(
            name=name,
            path=spec.path,
            backbone=self.engine.backbone.key,
            mode=need.mode,
            version=instance.version,
            is_adapter=instance.is_adapter,
            is_scalar=instance.head is not None,
            max_seq_len=min(self.engine.plan.max_seq_len, spec.max_seq_len or self.engine.plan.max_seq_len),
            max_batch_size=need.max_batch_size,
            optim_step=0 if trainer is None else trainer.weights.parameters.num_steps,
        )

    @property
    def is_busy(self) -> bool:
        """A save is being written."""
        return self._saver.is_busy

    def poll(self) -> None:
        """Tell of saves that ended."""
        self._saver.poll()

    def close(self) -> None:
        """Let the thread end, after what it writes."""
        self._saver.close()


class _Begin:
    """Tells of a sequence that could not begin; what it brings comes as outputs."""

    def __init__(self, refuse: Callable[[HarmoniaError], None]) -> None:
        self._refuse = refuse

    def done(self, value: JsonObject) -> None:
        """It has begun."""

    def failed(self, error: HarmoniaError) -> None:
        """It was refused, or its model is gone."""
        self._refuse(error)


class _Later:
    """Passes failures on; success is told by whoever goes on."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def done(self, value: JsonObject) -> None:
        """The work has only begun."""

    def failed(self, error: HarmoniaError) -> None:
        """It will not begin."""
        self._answer.failed(error)


def adapter_targets(decoder: Decoder, adapter: AdapterSpec) -> dict[str, tuple[int, float]]:
    """(rank, scale) of a new adapter by path; `InvalidRequestError` for a projection that the model does not have."""
    alpha = 2.0 * adapter.rank if adapter.alpha is None else adapter.alpha
    paths = [f"model.layers.{target.layer}.{target.path}" for target in decoder.linears()]
    names = {path.rpartition(".")[2] for path in paths}
    unknown = set(adapter.targets) - names
    if unknown:
        raise InvalidRequestError(
            f"adapter targets {sorted(unknown)} do not exist in this model; it has {sorted(names)}", field="targets"
        )
    wanted = set(adapter.targets) or names
    return {path: (adapter.rank, alpha / adapter.rank) for path in paths if path.rpartition(".")[2] in wanted}


def resolve_spawn(name: str, spec: SpawnSpec, config: EngineConfig) -> tuple[BackboneKey, InstanceNeed]:
    """The backbone that it may share, and what the instance takes beside it."""
    base = adapter_base(spec.path)
    path = str(Path(spec.path if base is None else base).resolve())
    need = instance_need(name, spec, config.max_adapter_rank, is_adapter=base is not None)
    invariant = config.invariant if spec.invariant is None else spec.invariant
    draft = str(Path(spec.draft).resolve()) if spec.draft is not None and _drafter(spec) is Drafter.MODEL else None
    if base is not None and spec.keep_layers is not None:
        raise InvalidRequestError(
            f"{spec.path} is an adapter, and keep_layers cuts whole models: leave it out, or spawn the adapter's base",
            field="keep_layers",
        )
    return BackboneKey(path, spec.precision or config.precision, invariant, draft, spec.keep_layers), need


def instance_need(name: str, spec: SpawnSpec, max_rank: int, *, is_adapter: bool) -> InstanceNeed:
    """What an instance takes beside the backbone; `InvalidRequestError` for a specification that contradicts itself.

    is_adapter: the path holds an adapter.
    """
    if is_adapter and spec.use_adapter is False:
        raise InvalidRequestError(
            f"{spec.path} is an adapter, so with_adapter(False) cannot be: leave it out, or spawn its base model",
            field="use_adapter",
        )
    if spec.tp != 1:
        raise InvalidRequestError(f"tp={spec.tp}: this worker runs on one device; use tp=1", field="tp")
    trains = spec.mode == "training"
    if trains and not (spec.max_batch_size is not None and 1 <= spec.max_batch_size <= _MAX_TOKENS):
        raise InvalidRequestError(
            f"max_batch_size must be a number of tokens from 1 to {_MAX_TOKENS}, got {spec.max_batch_size}",
            field="max_batch_size",
        )
    rank, targets = 0, tuple[str, ...]()
    if is_adapter:
        saved = read_saved_adapter(spec.path, max_rank=max_rank)
        rank = max(lora.a_rK.shape[0] for lora in saved.matrices.values())
        targets = tuple(sorted({path.rpartition(".")[2] for path in saved.matrices}))
    elif spec.use_adapter:
        rank, targets = spec.adapter.rank, spec.adapter.targets
        if spec.adapter.alpha is not None and not math.isfinite(spec.adapter.alpha):
            raise InvalidRequestError(f"adapter alpha must be a finite number, got {spec.adapter.alpha}", field="alpha")
        if not 1 <= rank <= max_rank:
            raise InvalidRequestError(
                f"adapter rank must be between 1 and {max_rank}, got {rank}; --max-adapter-rank raises the limit",
                field="rank",
            )
    return InstanceNeed(
        name=name,
        mode=spec.mode,
        max_batch_size=spec.max_batch_size if trains else None,
        rank=rank,
        targets=targets,
        full=trains and not rank,
        scalar=spec.scalar_head,
        copies=2 if trains else 1,
        num_draft_steps=_num_draft_steps(spec),
    )


def _drafter(spec: SpawnSpec) -> Drafter | None:
    if spec.draft is None:
        return None
    return Drafter.NGRAM if spec.draft == Drafter.NGRAM.value else Drafter.MODEL


def _num_draft_steps(spec: SpawnSpec) -> int:
    if spec.num_draft_steps is not None and not 1 <= spec.num_draft_steps <= MAX_DRAFT_STEPS:
        raise InvalidRequestError(
            f"num_draft_steps must be from 1 to {MAX_DRAFT_STEPS}, got {spec.num_draft_steps}", field="num_draft_steps"
        )
    if spec.draft is None:
        return 0
    return DEFAULT_DRAFT_STEPS if spec.num_draft_steps is None else spec.num_draft_steps


def _sample(side: SampleArrays, loss: Loss, vocab_size: int) -> Sample:
    token_ids = unpack_ids(side.token_ids)
    targets = unpack_ids(side.targets)
    for ids in (token_ids, targets):
        bad = ids[(ids < 0) | (ids >= vocab_size)]
        if len(bad):
            raise InvalidRequestError(f"token id {int(bad[0])} is outside the vocabulary of {vocab_size}")
    if isinstance(loss, Tangents):
        return Sample.from_tangents(token_ids, targets, loss.tangents)
    if isinstance(loss, LAST_TOKEN):
        return Sample.last_token(token_ids)
    weights = torch.frombuffer(bytearray(side.weights), dtype=torch.float32) if side.weights else torch.zeros(0)
    return Sample.from_weighted(token_ids, weights.numpy())
