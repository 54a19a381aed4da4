"""Training on one backbone: queues of calls, micro-batches packed from them, and slices of the one in progress.

Calls of one instance take effect in order. Samples of all instances share micro-batches; what must see everything
before it (an optimizer step, a save) is a `Barrier` in its instance's queue.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from torch import Tensor

from harmonia.engine.requests import Answer, as_harmonia_error
from harmonia.errors import HarmoniaError, SequenceTooLongError, UnavailableError
from harmonia.kernels.compiling import compile_together
from harmonia.models.decoder import Decoder
from harmonia.protocol.base import JsonObject
from harmonia.protocol.losses import Distillation, Dpo, LanguageModelling, Loss, Mse, Ranking
from harmonia.train.distillation import Teacher, rehearse
from harmonia.train.losses import Evaluable, check, pair_tangents
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.packing import Slice
from harmonia.train.samples import Sample
from harmonia.train.weights import TrainedWeights

FLUSH_S = 0.005
"""A partly filled micro-batch runs when its instance got no further call for so long."""
_LOOK_AHEAD = 4
"""Micro-batches' worth of calls of one instance among which the next one is packed: more would hardly fill it better,
and tens of thousands may wait, as when somebody asks for a whole data set at once."""
_COMMAND, _BEGIN = Slice("command", 1), Slice("begin", 1)


@dataclass(slots=True, eq=False)
class Call:
    """One training call."""

    sides: tuple[Sample, ...]
    loss: Loss
    answer: Answer
    arrival_s: float
    teacher: Callable[[], Teacher] | None = None
    """Of distillation: the teacher's weights of the moment."""
    awaits_teacher: bool = False
    """Commands on the teacher that came before have still to take effect."""
    num_open: int = 1
    """Items that must still run; 0 when it is over."""
    known: list[Evaluable] = field(default_factory=list)
    """Derivatives of the sides of a pair that was too long for one micro-batch, once both were read."""

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the model."""
        return sum(len(side.token_ids_T) for side in self.sides)

    def reads(self, teacher: str) -> bool:
        """It learns from the instance of that name."""
        return isinstance(self.loss, Distillation) and self.loss.teacher == teacher

    def fail(self, error: HarmoniaError) -> None:
        """It will not run."""
        self.num_open = 0
        self.answer.failed(error)


@dataclass(frozen=True, slots=True, eq=False)
class Barrier:
    """A command that waits for everything before it."""

    answer: Answer
    run: Callable[[], JsonObject]
    is_blocked: Callable[[], bool] = lambda: False
    """Something in flight still needs what it would overwrite."""
    changes: bool = False
    """It moves the weights: what reads them and was asked later must wait."""
    needs_quiet: bool = False
    """It overwrites what every sequence reads: none may begin until it ran."""
    borrowers: Sequence[Call] = ()
    """Calls of other trainers that came before and read what it overwrites."""

    @property
    def is_lent(self) -> bool:
        """Some of these have still to run."""
        return any(call.num_open for call in self.borrowers)

    def fail(self, error: HarmoniaError) -> None:
        """It will not run."""
        self.answer.failed(error)


class Trainer:
    """An instance in training: its weights, its queue, and what was summed since its last step."""

    def __init__(self, name: str, weights: TrainedWeights, max_batch_size: int) -> None:
        """max_batch_size: tokens of the longest sample."""
        self.name = name
        self.weights = weights
        self.max_batch_size = max_batch_size
        self.queue: deque[Call | Barrier] = deque()
        self.num_running = 0
        """Items in the micro-batch in progress, or between two of them."""
        self.last_arrival_s = 0.0
        self._borrowers: list[Call] = []
        self.drop_sums()

    def drop_sums(self) -> None:
        """Begin a new step."""
        self.loss_sum: Tensor | None = None
        self.num_tokens = 0
        self.num_input_tokens = 0
        self.num_samples = 0
        self.num_distilled = 0
        self.overlap_sum: Tensor | float = 0.0
        self.agreement_sum: Tensor | float = 0.0

    def check(self, sides: tuple[Sample, ...], loss: Loss) -> None:
        """Raise `InvalidRequestError` if it cannot train on that."""
        check(loss, sides, is_scalar=self.weights.head is not None)
        for side in sides:
            if side.num_tokens > self.max_batch_size:
                raise SequenceTooLongError(
                    f"the sample has {side.num_tokens} tokens, and max_batch_size of {self.name!r} is "
                    f"{self.max_batch_size}; leave it out, shorten it, or spawn with a larger max_batch_size",
                    num_tokens=side.num_tokens,
                    limit=self.max_batch_size,
                )

    def add(
        self, sides: tuple[Sample, ...], loss: Loss, answer: Answer, teacher: Callable[[], Teacher] | None = None
    ) -> Call:
        """Queue a call that was checked."""
        self.last_arrival_s = time.monotonic()
        call = Call(sides, loss, answer, self.last_arrival_s, teacher)
        self.queue.append(call)
        return call

    def lend(self, call: Call) -> None:
        """A call of another trainer reads these weights, as the commands that are queued by now leave them."""
        self._borrowers = [*self.borrowers(), call]
        if self.will_change:

            def release() -> JsonObject:
                call.awaits_teacher = False
                return {}

            call.awaits_teacher = True
            self.queue.append(Barrier(_Nobody(), release))

    def borrowers(self) -> list[Call]:
        """Calls of other trainers that have still to read these weights."""
        return [call for call in self._borrowers if call.num_open]

    def is_ripe(self, now: float) -> bool:
        """Its calls need not wait for company."""
        if not self.queue:
            return False
        return now - self.last_arrival_s >= FLUSH_S or any(isinstance(entry, Barrier) for entry in self.queue)

    def settle(self, call: Call) -> None:
        """One of a call's items is through."""
        self.num_running -= 1
        call.num_open -= 1
        if call.num_open == 0:
            self.num_samples += 1
            num_tokens = sum(len(side.rows_W) for side in call.sides)
            self.num_tokens += num_tokens
            self.num_distilled += num_tokens if isinstance(call.loss, Distillation) else 0
            self.num_input_tokens += sum(side.num_tokens for side in call.sides)
            call.answer.done({})

    def add_loss(self, loss: Tensor) -> None:
        """Sum a loss on its device."""
        self.loss_sum = loss.double() if self.loss_sum is None else self.loss_sum + loss

    def add_distilled(self, loss: Tensor, overlap: Tensor, agreement: Tensor) -> None:
        """Sum a loss and what its rows have in common with their teacher, on its device."""
        self.add_loss(loss)
        self.overlap_sum = self.overlap_sum + overlap.double()
        self.agreement_sum = self.agreement_sum + agreement.double()

    def means(self) -> dict[str, float]:
        """What was summed since the last step, for `optim_step` to tell."""
        told = {
            "loss": (0.0 if self.loss_sum is None else float(self.loss_sum)) / self.num_samples,
            "num_tokens": float(self.num_tokens),
            "num_input_tokens": float(self.num_input_tokens),
            "num_samples": float(self.num_samples),
        }
        if self.num_distilled:
            told["agreement"] = float(self.agreement_sum) / self.num_distilled
            told["overlap"] = float(self.overlap_sum) / self.num_distilled
        return told

    @property
    def will_change(self) -> bool:
        """An update of the weights waits in the queue."""
        return any(isinstance(entry, Barrier) and entry.changes for entry in self.queue)

    def fail_all(self, error: HarmoniaError) -> None:
        """End everything that waits."""
        while self.queue:
            self.queue.popleft().fail(error)


class Training:
    """All instances in training on one backbone."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._again: deque[tuple[Trainer, Call, int]] = deque()
        """Sides of long pairs that were read and now train alone: (trainer, call, side)."""
        self._probes: deque[tuple[Trainer, Call]] = deque()
        self._running: Iterator[Slice] | None = None
        self._upcoming = _BEGIN
        """What `_running` does next."""
        self._batch: list[tuple[Trainer, Call]] = []
        self._new: list[Trainer] = []
        """Those that nothing was compiled for yet."""
        self.trainers: dict[str, Trainer] = {}
        self.max_tokens = 0
        """Tokens of a micro-batch: the largest `max_batch_size`, for which activations are reserved."""
        self.num_kept = 0
        """Layers that keep their activations."""
        self.num_whole = 0
        """Layers of these that keep all of them; see kernels/again.py."""
        self.num_tokens = 0
        self.num_microbatches = 0

    def reserve(self, max_tokens: int, num_kept: int, num_whole: int) -> None:
        """Take over what memory was planned for."""
        self.max_tokens, self.num_kept, self.num_whole = max_tokens, num_kept, num_whole

    def add(self, trainer: Trainer) -> None:
        """Begin to train an instance."""
        self.trainers[trainer.name] = trainer
        self._new.append(trainer)

    def prepare(self, *, beside_serving: bool) -> None:
        """On a GPU, do now what the first step of new trainers would wait for, unless something is served meanwhile."""
        device = self._decoder.fmt.device
        new, self._new = self._new, []
        if device.type == "cuda" and not beside_serving and not self.has_work:  # memory is planned for one micro-batch
            for trainer in new:
                run = partial(self._rehearse, trainer.weights, trainer.max_batch_size)
                compile_together(run, device)
                run()

    def _rehearse(self, weights: TrainedWeights, max_tokens: int) -> None:
        """A micro-batch of a longest sample, and a step that moves nothing."""
        item = _longest_item(weights, min(max_tokens, self._decoder.config.max_seq_len))
        for _ in MicroBatch(self._decoder, [item], num_kept=self.num_kept, num_whole=self.num_whole).run():
            pass
        weights.parameters.drop_gradient()
        weights.step(lr=0.0, wd=0.0, max_grad_norm=1.0, num_samples=1)
        weights.parameters.num_steps = 0

    def prepare_teacher(self, trainer: Trainer, teacher: Teacher, *, beside_serving: bool) -> None:
        """The same for the first micro-batch that a teacher reads."""
        device = self._decoder.fmt.device
        if device.type == "cuda" and not beside_serving and not self.has_work:
            num_tokens = min(
                trainer.max_batch_size, self._decoder.config.max_seq_len, teacher.decoder.config.max_seq_len
            )
            compile_together(partial(rehearse, self._decoder, teacher, num_tokens), device)
            rehearse(self._decoder, teacher, num_tokens)

    def remove(self, name: str) -> None:
        """Stop training an instance; what waits for it fails."""
        trainer = self.trainers.pop(name, None)
        if trainer is not None:
            trainer.fail_all(UnavailableError(f"{name!r} was deallocated"))
            self._finish_running()
            trainer.weights.release()

    def part_from(self, teacher: str) -> None:
        """An instance will be freed: what reads it now comes to its end, and what waits to read it fails."""
        if any(call.reads(teacher) for _, call in self._batch):
            self._finish_running()
        error = UnavailableError(
            f"the teacher {teacher!r} was deallocated; keep it until every call that learns from it has returned"
        )
        for trainer in self.trainers.values():
            for call in [entry for entry in trainer.queue if isinstance(entry, Call) and entry.reads(teacher)]:
                trainer.queue.remove(call)
                call.fail(error)

    @property
    def has_work(self) -> bool:
        """Something waits or runs."""
        return bool(self._running or self._again or self._probes or any(t.queue for t in self.trainers.values()))

    @property
    def wants_quiet(self) -> bool:
        """A command waits for sequences in flight to end."""
        barriers = (self._barrier_of(trainer, blocked=True) for trainer in self.trainers.values())
        return any(barrier is not None and barrier.needs_quiet and not barrier.is_lent for barrier in barriers)

    def wake_s(self) -> float | None:
        """Monotonic time at which calls that wait for company run without it; None when nothing waits for that."""
        heads = ((trainer, trainer.queue[0]) for trainer in self.trainers.values() if trainer.queue)
        arrivals = [
            trainer.last_arrival_s for trainer, head in heads if isinstance(head, Call) and not head.awaits_teacher
        ]
        return min(arrivals) + FLUSH_S if arrivals else None

    def is_ready(self) -> bool:
        """A slice can run now."""
        if self._running or self._again or self._probes:
            return True
        if any(self._barrier_of(trainer, blocked=False) for trainer in self.trainers.values()):
            return True
        return bool(self._packable(time.monotonic()))

    def next_slice(self) -> Slice:
        """What `run_slice` would run."""
        if any(self._barrier_of(trainer, blocked=False) for trainer in self.trainers.values()):
            return _COMMAND
        return _BEGIN if self._running is None else self._upcoming

    def run_slice(self) -> None:
        """One slice of the micro-batch in progress, or a command whose turn has come."""
        for trainer in self.trainers.values():
            barrier = self._barrier_of(trainer, blocked=False)
            if barrier is not None:
                trainer.queue.popleft()
                _obey(barrier)
                return
        if self._running is None:
            self._begin()
        if self._running is None:
            return
        upcoming = next(self._running, None)
        if upcoming is not None:
            self._upcoming = upcoming
        else:
            self._running = None
            self._end()

    # --------------------------------------------------------------------------------------------- packing

    def _barrier_of(self, trainer: Trainer, *, blocked: bool) -> Barrier | None:
        """The command at the head of a queue, if everything before it is done."""
        head = trainer.queue[0] if trainer.queue else None
        if not isinstance(head, Barrier) or trainer.num_running:
            return None
        return head if (head.is_lent or head.is_blocked()) == blocked else None

    def _packable(self, now: float) -> list[tuple[Trainer, Call]]:
        """The first calls of each queue, before any barrier, by arrival; nothing while it pays to wait for more."""
        waiting = []
        for trainer in self.trainers.values():
            room = _LOOK_AHEAD * self.max_tokens
            for entry in trainer.queue:
                if isinstance(entry, Barrier) or room <= 0:
                    break
                if not entry.awaits_teacher:
                    waiting.append((trainer, entry))
                    room -= entry.num_tokens
        is_full = sum(call.num_tokens for _, call in waiting) >= self.max_tokens
        if not is_full and not any(trainer.is_ripe(now) for trainer, _ in waiting):
            return []
        return sorted(waiting, key=lambda pair: pair[1].arrival_s)

    def _begin(self) -> None:
        if self._probes:
            trainer, call = self._probes.popleft()
            self._read_pair(trainer, call)
        elif self._again:
            trainer, call, side = self._again.popleft()
            item = _item(trainer, (call.sides[side],), call.known[side])
            self._start([item], [(trainer, call)])
        else:
            self._start_packed()

    def _start_packed(self) -> None:
        chosen, room = [], self.max_tokens
        for trainer, call in self._packable(time.monotonic()):
            if call.num_tokens > self.max_tokens:
                trainer.queue.remove(call)
                trainer.num_running += 2
                call.num_open = 2
                self._probes.append((trainer, call))
            elif call.num_tokens <= room:
                room -= call.num_tokens
                trainer.queue.remove(call)
                trainer.num_running += 1
                chosen.append((trainer, call))
        # A sample whose tangents are all 0 has nothing to run, but it counts.
        items = [_item(trainer, call.sides, call.loss, call.teacher) for trainer, call in chosen if call.num_tokens]
        if items:
            self._start(items, chosen)
        else:
            self._batch = chosen
            self._end()

    def _start(self, items: Sequence[Item], batch: list[tuple[Trainer, Call]]) -> None:
        self._batch = batch
        self.num_microbatches += 1
        self.num_tokens += sum(item.num_tokens for item in items)
        running = MicroBatch(self._decoder, items, num_kept=self.num_kept, num_whole=self.num_whole)
        self._running = running.run()

    def _end(self) -> None:
        batch, self._batch = self._batch, []
        for trainer, call in batch:
            trainer.settle(call)

    def _finish_running(self) -> None:
        while self._running is not None:
            self.run_slice()

    def _read_pair(self, trainer: Trainer, call: Call) -> None:
        """Read both sides of a pair that is too long for one micro-batch, then let each train alone."""
        weights, sums = trainer.weights, list[float]()

        def note(_: Tensor, values: tuple[Tensor, ...]) -> None:
            sums.append(float(values[0].sum()))

        def read() -> Iterator[Slice]:
            for side in call.sides:
                item = Item((side,), None, weights.slot, weights.head, note)
                yield from MicroBatch(self._decoder, [item], num_kept=0).run()
            assert isinstance(call.loss, Dpo | Ranking)
            call.known = list(pair_tangents(call.loss, *sums))
            self._again.extend((trainer, call, side) for side in (0, 1))

        self._running = read()


def _item(
    trainer: Trainer, sides: tuple[Sample, ...], loss: Evaluable, teacher: Callable[[], Teacher] | None = None
) -> Item:
    weights = trainer.weights
    if teacher is None:
        return Item(sides, loss, weights.slot, weights.head, lambda total, _: trainer.add_loss(total))
    return Item(
        sides, loss, weights.slot, None, lambda total, sums: trainer.add_distilled(total, *sums), teacher=teacher()
    )


def _longest_item(weights: TrainedWeights, num_tokens: int) -> Item:
    """One sample of so many tokens, whose loss nobody hears of."""
    ids = np.zeros(max(2, num_tokens), dtype=np.int64)
    if weights.head is not None:
        return Item((Sample.last_token(ids),), Mse(target=0.0), weights.slot, weights.head, _ignore)
    weights_T = np.ones(len(ids))
    weights_T[0] = 0  # no state predicts the first token
    return Item((Sample.from_weighted(ids, weights_T),), LanguageModelling(), weights.slot, None, _ignore)


def _ignore(_loss: Tensor, _values: tuple[Tensor, ...]) -> None:
    """Of what is run for its kernels only."""


def _obey(barrier: Barrier) -> None:
    try:
        value = barrier.run()
    except Exception as error:  # noqa: BLE001 - one client's command must not take everyone's models down
        barrier.answer.failed(as_harmonia_error(error))
    else:
        barrier.answer.done(value)


class _Nobody:
    """Waits for a command only for its place in the queue."""

    def done(self, value: JsonObject) -> None:
        """It ran."""

    def failed(self, error: HarmoniaError) -> None:
        """Whoever is concerned hears of it otherwise."""
