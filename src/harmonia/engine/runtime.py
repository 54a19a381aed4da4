"""Everything on one device: any number of backbones, served and trained in turns, in memory that was planned."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from harmonia.config import EngineConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.engine import Engine
from harmonia.engine.heap import DeviceHeap, Heap
from harmonia.engine.insight import describe, merged_stats
from harmonia.engine.instances import Instances, resolve_spawn
from harmonia.engine.lanes import Lanes
from harmonia.engine.ledger import Ledger
from harmonia.engine.lessons import Lessons
from harmonia.engine.loading import Load, Loader, PendingSpawn, Share
from harmonia.engine.memory import InstanceNeed
from harmonia.engine.pacing import Pacer
from harmonia.engine.requests import (
    Answer,
    EngineDescription,
    OptimStepRequest,
    SaveRequest,
    SequenceOutput,
    SequenceRequest,
    TrainRequest,
    as_harmonia_error,
    refusal,
)
from harmonia.engine.stats import EngineStats
from harmonia.errors import InvalidRequestError
from harmonia.kernels.packed_attention_cuda import planning
from harmonia.protocol.base import JsonObject
from harmonia.protocol.instances import SpawnSpec

_POLL_S = 0.01
"""How often to look at threads that load or save, and at commands that wait for sequences."""


class Runtime:
    """Backbones and the instances on them. Single-threaded: one caller steps it and talks to it."""

    def __init__(self, config: EngineConfig) -> None:
        """A bare one: `spawn` brings models."""
        self._config = config
        self._lanes = Lanes()
        self._loader = Loader()
        self._heap, self._device_heap = Heap(), DeviceHeap()
        self._pacer = Pacer(config.scheduler.training_share)
        self._next_lane = 0
        self._idle = False
        self._ended: list[SequenceOutput] = []
        """Outputs for the next step that no engine brings."""
        self._served_adapters: set[str] = set()
        self._ledger = Ledger(config, self._lanes, self._loader.loads)
        self._lessons = Lessons(self._lanes, self._ledger)

    @staticmethod
    def load(model: str, key: str, config: EngineConfig, progress: Share | None = None) -> Runtime:
        """With one backbone, served under `key` for good: bare, or with the adapter whose folder `model` is.

        Raises `InsufficientMemoryError` before anything large is allocated, `UnsupportedModelError` for broken files.
        """
        runtime = Runtime(config)
        path = str(Path(model).resolve())
        spec = SpawnSpec(path=path, draft=config.draft, num_draft_steps=config.num_draft_steps)
        base, need = resolve_spawn(key, spec, config)
        source, draft = base.open(), base.open_draft()
        plan = runtime._ledger.plan_served(source, need, draft)
        plan.memory.require()
        lane = Instances(Engine(Backbone.read(source, key, plan, progress, draft)), base.path)
        lane.add(key, spec, need)
        lane.is_permanent = True
        lane.engine.prepare()
        runtime._lanes.add(lane, shared_as=base)
        return runtime

    # --------------------------------------------------------------------------------------------- the loop

    def step(self) -> list[SequenceOutput]:
        """One step of every backbone that has something to serve, and a slice of training if there is time for it."""
        self._poll()
        outputs, self._ended = self._ended, []
        started, served = time.perf_counter(), False
        for lane in self._lanes:
            if lane.engine.has_work:
                outputs += lane.engine.step()
                served |= not lane.engine.stalled
        self._pacer.stepped(started, served=served)
        trained = self._train(beside_serving=served)
        if trained or served:
            self._keep_within_plan(time.perf_counter() - started)
        self._idle = not (served or trained or outputs)
        return outputs

    def _keep_within_plan(self, worked_s: float) -> None:
        on_device = self._lanes[0].engine.plan.device == "cuda"
        heap = self._device_heap if on_device else self._heap
        heap.keep_within(lambda: self._ledger.promised_bytes(with_runtime=not on_device), worked_s)

    def _train(self, *, beside_serving: bool) -> bool:
        """One slice, of each backbone in turn, unless serving left too little time for it: whether there was one."""
        for index in range(len(self._lanes)):
            turn = (self._next_lane + index) % len(self._lanes)
            engine = self._lanes[turn].engine
            if engine.training.is_ready():
                piece = engine.training.next_slice()
                self._next_lane = turn
                if beside_serving and not self._pacer.may_train(piece):
                    return False
                run, device = engine.training.run_slice, engine.backbone.device
                with planning(allowed=not beside_serving):
                    self._pacer.run(run, piece, device, beside_serving=beside_serving)
                self._next_lane = turn + 1
                return True
        return False

    @property
    def has_work(self) -> bool:
        """Something is served, trained, loaded or saved."""
        if self._loader.loads or self._ended or self._lanes.is_writing:
            return True
        return any(lane.engine.has_work or lane.engine.training.has_work for lane in self._lanes)

    @property
    def stalled(self) -> bool:
        """The last step could run nothing: everything waits for a mask, for more calls, or for a thread."""
        return self._idle

    @property
    def next_deadline_s(self) -> float | None:
        """Monotonic time at which `step` must be called even if nothing else happens."""
        times = [lane.engine.next_deadline_s for lane in self._lanes]
        times += [lane.engine.training.wake_s() for lane in self._lanes]
        trains = any(lane.engine.training.has_work for lane in self._lanes)
        if self._loader.loads or self._lanes.is_writing or trains:
            times.append(time.monotonic() + _POLL_S)
        return min((moment for moment in times if moment is not None), default=None)

    # --------------------------------------------------------------------------------------------- requests

    def add(self, request: SequenceRequest) -> None:
        """Queue a request on the backbone of its model. Scores wait for updates that were asked for before them."""
        lane = self._lanes.of(request.model)
        if request.score is None:
            lane.engine.add(request)
        else:
            lane.begin_score(request, lambda error: self._ended.append(refusal(request, error)))

    def cancel(self, seq_id: int) -> None:
        """Drop a sequence; its blocks are free at once."""
        for lane in self._lanes:
            lane.engine.cancel(seq_id)

    def hold(self, seq_id: int) -> None:
        """Pause a sequence until `release`."""
        for lane in self._lanes:
            lane.engine.hold(seq_id)

    def release(self, seq_id: int) -> None:
        """Go on with a paused sequence."""
        for lane in self._lanes:
            lane.engine.release(seq_id)

    def provide_mask(self, seq_id: int, num_generated: int, masks: bytes, proposals: bytes = b"") -> None:
        """Allowed tokens, one bit each, for the token after `num_generated` generated ones; see the engine."""
        for lane in self._lanes:
            lane.engine.provide_mask(seq_id, num_generated, masks, proposals)

    def close_session(self, session_id: str) -> None:
        """Give up a session's claim on its cache blocks."""
        for lane in self._lanes:
            lane.engine.close_session(session_id)

    # -------------------------------------------------------------------------------------------- instances

    def spawn(self, name: str, spec: SpawnSpec, answer: Answer, progress: Share) -> None:
        """Make an instance; reads its backbone in a thread unless one is loaded that it can share."""
        self._check_name(name)
        spec = msgspec.structs.replace(spec, path=str(Path(spec.path).resolve()))
        base, need = resolve_spawn(name, spec, self._config)
        spawn = PendingSpawn(name, spec, need, answer, progress)
        lane = None if need.full else self._lanes.shared(base)
        if lane is not None:
            answer.done(self._place(lane, spawn))
            return
        load = None if need.full else self._loader.find(base)
        if load is None:
            source, draft = base.open(), base.open_draft()
            plan = self._ledger.plan_new(source.path, source, spec, need, draft)
            plan.memory.require()
            load = self._loader.start(base, source, plan, draft=draft, own_name=name if need.full else None)
        load.waiting.append(spawn)

    def plan_spawn(self, spec: SpawnSpec) -> JsonObject:
        """The memory plan that a spawn would have, whether it fits or not."""
        base, need = resolve_spawn("", spec, self._config)
        lane = None if need.full else self._lanes.shared(base)
        if lane is not None:
            return self._ledger.replan(lane, need, spec.kv_cache_len).memory.to_dict()
        source = base.open()
        return self._ledger.plan_new(source.path, source, spec, need, base.open_draft()).memory.to_dict()

    def clone(self, instance: str, name: str, answer: Answer) -> None:
        """A frozen snapshot of an instance, behind the calls before it."""
        self._check_name(name)
        lane = self._lanes.of(instance)
        lane.after_calls(instance, answer, lambda: self._clone(lane, instance, name))

    def dealloc(self, instance: str) -> None:
        """Free an instance, and its backbone when it was the last one on it."""
        lane = self._lanes.of(instance)
        if lane.is_permanent and instance == lane.engine.backbone.key:
            raise InvalidRequestError(f"{instance!r} is what this worker serves; it stays")
        self._lessons.end(instance)
        lane.remove(instance)
        self._served_adapters.discard(instance)
        if lane.needs:
            lane.engine.adopt(self._ledger.replan(lane, None))
            return
        self._ended += lane.engine.take_orphaned()
        self._lanes.remove(lane)

    def train(self, request: TrainRequest, answer: Answer) -> None:
        """Add the gradient of a sample or a pair."""
        self._lanes.of(request.instance).train(request, answer, self._lessons.teacher(request))

    def optim_step(self, request: OptimStepRequest, answer: Answer) -> None:
        """Move the weights."""
        self._lanes.of(request.instance).optim_step(request, answer)

    def set_optim_step(self, instance: str, step: int, answer: Answer) -> None:
        """Set the number of steps done."""
        self._lanes.of(instance).set_optim_step(instance, step, answer)

    def save(self, request: SaveRequest, answer: Answer) -> None:
        """Write an instance into a folder."""
        self._lanes.of(request.instance).save(request, answer)

    def load_weights(self, instance: str, path: str, answer: Answer) -> None:
        """Replace an instance's weights in place."""
        self._lanes.of(instance).load(instance, path, answer)

    def load_adapter(self, key: str, path: str) -> None:
        """Load a PEFT folder onto the backbone that is served; requests may name it at once."""
        lane = next((lane for lane in self._lanes if lane.is_permanent), None)
        if lane is None:
            raise InvalidRequestError("this worker serves no model of its own; spawn the adapter's folder instead")
        self._check_name(key, field="key")
        lane.engine.load_adapter(key, path)
        lane.adopt(key, SpawnSpec(path=path), InstanceNeed(name=key, mode="inference"))
        self._served_adapters.add(key)
        lane.engine.adopt(lane.engine.plan)

    def unload_adapter(self, key: str) -> None:
        """Free an adapter that was loaded; its requests end with `UnavailableError` in the next step."""
        self._lanes.of(key)
        if key not in self._served_adapters:
            raise InvalidRequestError(
                f"{key!r} is no adapter that was loaded here; whoever spawned it frees it", field="key"
            )
        self.dealloc(key)

    # ---------------------------------------------------------------------------------------------- insight

    def describe(self) -> EngineDescription:
        """What runs here."""
        return describe(tuple(self._lanes))

    def stats(self) -> EngineStats:
        """Counters and gauges of this moment, of all backbones together."""
        return merged_stats([lane.engine.stats() for lane in self._lanes])

    # ----------------------------------------------------------------------------------------------- inside

    def _check_name(self, name: str, field: str = "name") -> None:
        if not name or not name.isprintable():
            raise InvalidRequestError(f"instance name {name!r} is empty or cannot be printed", field=field)
        if name in (*self._lanes.names(), *self._loader.names()):
            raise InvalidRequestError(
                f"the name {name!r} is taken on this worker; names are also model keys, so choose another", field=field
            )

    def _place(self, lane: Instances, spawn: PendingSpawn) -> JsonObject:
        """Put an instance on a loaded backbone."""
        plan = self._ledger.replan(lane, spawn.need, spawn.spec.kv_cache_len)
        plan.memory.require()
        lane.engine.backbone.grow_cache(plan.num_blocks)
        lane.add(spawn.name, spawn.spec, spawn.need)
        lane.engine.adopt(plan)
        spawn.progress(1.0)
        return self._spawned(lane, spawn.name)

    def _spawned(self, lane: Instances, name: str) -> JsonObject:
        info: JsonObject = msgspec.to_builtins(lane.info(name))
        return {"instance": info, "plan": lane.engine.plan.memory.to_dict(), "base": lane.path}

    def _poll(self) -> None:
        """Go on with what threads have finished."""
        self._lanes.poll()
        for load in self._loader.finished():
            backbone = load.result()
            if backbone is not None:
                self._open_lane(load, Instances(Engine(backbone), load.key.path))

    def _open_lane(self, load: Load, lane: Instances) -> None:
        if not any(other.engine.has_work for other in self._lanes):  # what is served must not wait for it
            lane.engine.prepare()
        self._lanes.add(lane, load.key if load.is_shared else None)
        for spawn in load.waiting:
            try:
                value = self._place(lane, spawn)
            except Exception as error:  # noqa: BLE001 - one client's spawn must not take everyone's models down
                spawn.answer.failed(as_harmonia_error(error))
            else:
                spawn.answer.done(value)
        if not lane.needs:
            self._lanes.remove(lane)

    def _clone(self, lane: Instances, instance: str, name: str) -> JsonObject:
        self._check_name(name)
        backbone, need = lane.engine.backbone, lane.needs[instance]
        if not need.full:
            copy = msgspec.structs.replace(need, name=name, mode="inference", max_batch_size=None, copies=1)
            plan = self._ledger.replan(lane, copy)
            plan.memory.require()
            lane.snapshot(instance, name, copy)
            lane.engine.adopt(plan)
            return self._spawned(lane, name)
        copy = InstanceNeed(name=name, mode="inference", scalar=need.scalar)
        spec = _spec_of_copy(lane, need)
        plan = self._ledger.plan_new(Path(lane.path), backbone.decoder.config, spec, copy)
        plan.memory.require()
        new = lane.copied(instance, copy, spec, plan)
        self._lanes.add(new)
        return self._spawned(new, name)


def _spec_of_copy(lane: Instances, need: InstanceNeed) -> SpawnSpec:
    """What would have spawned the whole weights of an instance once more."""
    plan = lane.engine.backbone.plan
    return SpawnSpec(
        path=lane.path,
        max_seq_len=plan.max_seq_len,
        scalar_head=need.scalar,
        precision=plan.precision,
        invariant=plan.config.invariant,
    )
