"""The engine: schedule, launch, finish."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from harmonia.config import EngineConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.collecting import Collector
from harmonia.engine.drafting import DraftScheduler
from harmonia.engine.graph_plan import max_verified_rows
from harmonia.engine.memory import Plan
from harmonia.engine.requests import (
    SequenceError,
    SequenceOutput,
    SequenceRequest,
    unpack_ids,
)
from harmonia.engine.runner import Launched, Runner
from harmonia.engine.scheduler import Scheduler
from harmonia.engine.sequence import Instance, Sequence, State
from harmonia.engine.stats import EngineStats, StatsRecorder
from harmonia.engine.training import Training
from harmonia.errors import (
    DeadlineExceededError,
    HarmoniaError,
    InvalidRequestError,
    OverloadedError,
    SequenceTooLongError,
    UnavailableError,
)
from harmonia.train.scalar_head import ScalarHead


class Engine:
    """Serves and trains one backbone and its adapters. Single-threaded: one caller steps it and talks to it.

    `step` serves; `training` holds the other kind of work, whose slices run when the caller finds time for them.
    """

    def __init__(self, backbone: Backbone) -> None:
        plan = backbone.plan
        self.backbone = backbone
        self.training = Training(backbone.decoder)
        draft_len = 0 if backbone.draft is None else backbone.draft.decoder.config.max_seq_len
        assert plan.scheduler.max_batch_tokens is not None, "the plan resolves it"
        self._drafts = DraftScheduler(
            backbone.pool,
            draft_len=draft_len,
            max_tokens=plan.scheduler.max_batch_tokens,
            max_rows=max_verified_rows(plan.scheduler.max_running),
        )
        self._scheduler = Scheduler(
            plan.scheduler,
            backbone.pool,
            backbone.sessions,
            max_seq_len=plan.max_seq_len,
            prefix_caching=plan.config.cache.prefix_caching,
            drafts=self._drafts,
        )
        self._runner = Runner(backbone)
        self._stats = StatsRecorder()
        self._collector = Collector(self._stats, self._drafts)
        self._sequences: dict[int, Sequence] = {}
        self._in_flight: deque[Launched] = deque()
        """Steps on their way."""
        self._busy_since: float | None = None
        """When the last step was finished, or the present one begun behind a pause."""
        self._orphaned: list[SequenceOutput] = []
        self._num_overlapped = 1 if backbone.device.type == "cuda" else 0
        self._stalled = False

    @staticmethod
    def load(model: str, key: str, config: EngineConfig, progress: Callable[[float], None] | None = None) -> Engine:
        """Plan the memory, then load the model at a path; `progress` hears values from 0 to 1.

        Raises `InsufficientMemoryError` before anything large is allocated, `UnsupportedModelError` for broken files.
        """
        backbone = Backbone.load(model, key, config, progress)
        backbone.add_bare(key)
        engine = Engine(backbone)
        engine.prepare()
        return engine

    def prepare(self) -> None:
        """Compile kernels and capture graphs now, so that no request waits for them."""
        self._runner.prepare()

    def adopt(self, plan: Plan) -> None:
        """Go by a new plan, after instances came or went; what new ones need is made now unless something is served."""
        self.backbone.plan = plan
        self.training.reserve(plan.max_batch_size, plan.num_kept, plan.memory.num_whole)
        self.training.prepare(beside_serving=self.has_work)
        self._runner.resize()
        if self.has_work:
            return
        self._runner.prepare()
        if self.backbone.num_adapters:
            self._runner.prepare_adapters()

    # --------------------------------------------------------------------------------------------- the loop

    def step(self) -> list[SequenceOutput]:
        """One step: what it brought, nothing when nothing could run.

        On a GPU the results of a step are read while the next one computes.
        """
        outputs = self._expire()
        if self._scheduler.needs_results():  # where an answer goes on depends on which proposals were right
            while self._in_flight:
                outputs += self._finish()
        self._scheduler.admits_new = not self.training.wants_quiet
        schedule = self._scheduler.schedule()
        self._stalled = schedule is None and not self._in_flight
        if schedule is not None:
            self._busy_since = self._busy_since or time.monotonic()
            launched = self._runner.launch(schedule)
            self._in_flight.append(launched)
            self._stats.batch_size.observe(len(schedule.work))
            self._stats.counters["steps"] += 1
            self._stats.counters["batch_tokens"] += launched.batch.num_tokens
        if len(self._in_flight) > (self._num_overlapped if schedule is not None else 0):
            outputs += self._finish()
        # Waiting for masks is part of the next step's time, which proposals save or prolong.
        if not self.has_work or (self._stalled and not self._scheduler.awaits_masks):
            self._busy_since = None
        return outputs

    def _finish(self) -> list[SequenceOutput]:
        launched = self._in_flight.popleft()
        batch, results = launched.batch, launched.read()
        for work in batch.work:
            self._scheduler.publish(work)
        now = time.monotonic()
        if self._busy_since is not None and self._drafts.has_sequences and batch.has_single_tokens:
            num_tokens = sum(len(result.token_ids) for result in results)
            self._drafts.observe(launched.schedule, now - self._busy_since, num_tokens)
        self._busy_since = now
        outputs = []
        for result in results:
            sequence = result.work.sequence
            if sequence.state is State.FINISHED:
                continue  # cancelled, or ended one token earlier while this step was on its way
            output = self._collector.collect(sequence, result, now)
            if output is not None:
                is_last = output.finish_reason is not None or not sequence.generates
                outputs.append(self._end(sequence, output) if is_last else output)
        return outputs

    @property
    def has_work(self) -> bool:
        """Some sequence is not finished yet."""
        return bool(self._sequences or self._in_flight or self._orphaned)

    @property
    def stalled(self) -> bool:
        """The last step could run nothing: everything is paused or waits for a mask."""
        return self._stalled

    @property
    def next_deadline_s(self) -> float | None:
        """Monotonic time at which `step` must be called even if nothing else happens."""
        return self._scheduler.next_deadline_s

    # ------------------------------------------------------------------------------------------- requests

    def add(self, request: SequenceRequest) -> None:
        """Queue a request; everything wrong with it is raised here, before it takes anything."""
        instance = self.backbone.instance(request.model)
        self._check(request)
        sequence = Sequence.create(request, instance, self.backbone.eos_ids, self.backbone.plan.max_seq_len)
        self._scheduler.add(sequence)
        self._sequences[request.seq_id] = sequence
        self._stats.models[request.model].counters["requests"] += 1

    def cancel(self, seq_id: int) -> None:
        """Drop a sequence; its blocks are free at once."""
        sequence = self._sequences.pop(seq_id, None)
        if sequence is not None:
            self._scheduler.finish(sequence)
            self._stats.models[sequence.instance.key].counters["cancelled"] += 1
        if not self.has_work:
            self._busy_since = None

    def hold(self, seq_id: int) -> None:
        """Pause a sequence until `release`."""
        if seq_id in self._sequences:
            self._sequences[seq_id].held = True

    def release(self, seq_id: int) -> None:
        """Go on with a paused sequence."""
        if seq_id in self._sequences:
            self._sequences[seq_id].held = False

    def provide_mask(self, seq_id: int, num_generated: int, masks: bytes, proposals: bytes = b"") -> None:
        """Allowed tokens, one bit each, for the token after `num_generated` generated ones.

        proposals: int32, tokens that may come there, up to `SequenceOutput.num_wanted`; the mask of what follows each
        of them stands behind the first one.
        """
        sequence = self._sequences.get(seq_id)
        if sequence is not None:
            sequence.allow(num_generated, masks, unpack_ids(proposals))

    def close_session(self, session_id: str) -> None:
        """Give up a session's claim on its cache blocks."""
        self.backbone.sessions.close(session_id)

    # -------------------------------------------------------------------------------------------- adapters

    def load_adapter(self, key: str, path: str) -> None:
        """Load a PEFT folder; requests may name it at once."""
        self.backbone.load_adapter(key, path)

    def remove_instance(self, key: str) -> None:
        """Forget an instance and free its slot; its requests end with `UnavailableError` in the next step."""
        self.backbone.remove(key)
        error = UnavailableError(f"model {key!r} was unloaded; load it again or use another")
        for sequence in [item for item in self._sequences.values() if item.instance.key == key]:
            self._orphaned.append(self._fail(sequence, error))

    def take_orphaned(self) -> list[SequenceOutput]:
        """Ends of sequences whose instance is gone, for when no step will tell of them."""
        outputs, self._orphaned = self._orphaned, []
        return outputs

    def readers(self, slot: int | None) -> list[Sequence]:
        """Sequences bound to the adapter in a slot, or, without one, to the present weights of the backbone."""
        begun = (item for item in self._sequences.values() if item.has_begun)
        return [item for item in begun if slot is None or item.instance.adapter_slot == slot]

    def give_up_paused(self, sequences: list[Sequence]) -> None:
        """End those whose consumer does not read: they keep an old version of the weights in use."""
        error = OverloadedError("the answer was paused while its model was updated twice; read it faster, or ask again")
        for sequence in sequences:
            if sequence.held:
                self._orphaned.append(self._fail(sequence, error))

    def advance(self, key: str, slot: int | None, head: ScalarHead | None) -> Instance:
        """The next version of an instance; sequences that have not begun take it."""
        self.backbone.advance(key, slot, head)
        for sequence in self._scheduler.waiting:
            if not sequence.has_begun:
                sequence.rebase(self.backbone.instance(sequence.instance.key))
        return self.backbone.instance(key)

    # -------------------------------------------------------------------------------------------- insight

    @property
    def plan(self) -> Plan:
        """Resolved settings and the table of bytes that loading enforced."""
        return self.backbone.plan

    def stats(self) -> EngineStats:
        """Counters and gauges of this moment."""
        scheduler, pool = self._scheduler, self.backbone.pool
        gauges = {
            "queue_length": float(len(scheduler.waiting)),
            "running": float(len(scheduler.running)),
            "cache_blocks": float(pool.num_blocks),
            "cache_blocks_held": float(pool.num_held),
            "cache_occupancy": pool.num_held / pool.num_blocks,
            "sessions": float(len(self.backbone.sessions)),
            "adapters": float(self.backbone.num_adapters),
            "instances_in_training": float(len(self.training.trainers)),
            "draft_steps": float(self._drafts.choice.num_steps),
        }
        counters = {
            "preemptions": float(scheduler.num_preemptions),
            "evictions": float(pool.num_evictions),
            "prefix_query_tokens": float(scheduler.num_prefix_queries),
            "prefix_hit_tokens": float(scheduler.num_prefix_hits),
            "training_tokens": float(self.training.num_tokens),
            "training_microbatches": float(self.training.num_microbatches),
        }
        return self._stats.snapshot(gauges, counters)

    # --------------------------------------------------------------------------------------------- inside

    def _check(self, request: SequenceRequest) -> None:
        prompt, limit = unpack_ids(request.token_ids), self.backbone.plan.max_seq_len
        if request.seq_id in self._sequences:
            raise InvalidRequestError(f"sequence {request.seq_id} is still running; use another id")
        if len(prompt) == 0:
            raise InvalidRequestError("the prompt is empty; give at least one token", field="prompt")
        room = limit - 1 if request.generates else limit
        if len(prompt) > room:
            raise SequenceTooLongError(
                f"the prompt has {len(prompt)} tokens, and at most {room} leave room for an answer; shorten it or "
                "serve with a larger max_seq_len (--max-seq-len, --kv-cache-len)",
                num_tokens=len(prompt),
                limit=limit,
            )
        vocab_size = self.backbone.decoder.config.vocab_size
        bad = prompt[(prompt < 0) | (prompt >= vocab_size)]
        if len(bad):
            raise InvalidRequestError(
                f"token id {int(bad[0])} is outside the vocabulary of {vocab_size}", field="prompt"
            )
        request.sampling.validate(vocab_size)
        _check_head(request, self.backbone.instance(request.model))

    def _end(self, sequence: Sequence, output: SequenceOutput) -> SequenceOutput:
        self._scheduler.finish(sequence)
        del self._sequences[sequence.request.seq_id]
        counters = self._stats.models[sequence.instance.key].counters
        counters["failed" if output.error else "finished"] += 1
        return output

    def _expire(self) -> list[SequenceOutput]:
        """End what is overdue, and tell of what lost its adapter."""
        outputs = self.take_orphaned()
        now = time.monotonic()
        for sequence in self._scheduler.expired(now):
            self._stats.models[sequence.instance.key].counters["ttft_timeouts"] += 1
            outputs.append(self._fail(sequence, _overdue(sequence, now)))
        return outputs

    def _fail(self, sequence: Sequence, error: HarmoniaError) -> SequenceOutput:
        return self._end(sequence, SequenceOutput(seq_id=sequence.request.seq_id, error=SequenceError.of(error)))


def _check_head(request: SequenceRequest, instance: Instance) -> None:
    """A scoring model gives scores, a language model everything else."""
    reads_scores = request.score is not None and not request.score.targets
    if reads_scores and instance.head is None:
        raise InvalidRequestError(
            f"{request.model!r} has no scalar head; build it with into_scoring_model() to score", field="model"
        )
    if instance.head is not None and not reads_scores and not request.embed:
        raise InvalidRequestError(
            f"{request.model!r} is a scoring model; it gives scores, not tokens or log-probabilities", field="model"
        )


def _overdue(sequence: Sequence, now: float) -> DeadlineExceededError:
    waited_ms = round((now - sequence.request.arrival_s) * 1000)
    return DeadlineExceededError(
        f"no first token after {waited_ms} ms, and max_ttft_ms is {sequence.request.max_ttft_ms} (queue included); "
        "raise max_ttft_ms in the request or of the model",
        limit="max_ttft_ms",
        limit_ms=sequence.request.max_ttft_ms,
        waited_ms=waited_ms,
    )
