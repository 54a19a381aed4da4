"""What instances need beside the backbone that they share, counted before they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.engine.graph_plan import verified_rows
from harmonia.errors import InvalidRequestError
from harmonia.layers.linear import WeightFormat
from harmonia.models import ModelConfig
from harmonia.models.sizes import (
    activation_bytes,
    logits_bytes,
    lora_bytes_per_rank,
    lora_parameters,
    num_parameters,
    weight_bytes,
)
from harmonia.train.footprint import Footprint, Trained, footprint, reading_bytes
from harmonia.train.parameters import num_state_bytes

_FP32_BYTES = 4
_FRAGMENTED_SHARE = 0.07
"""Of activations on a GPU, what torch's allocator reserves beyond them; see `benchmarks memory`."""


DRAFT_ROW = "draft: weights"


class PlanRow(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    num_bytes: int
    note: str = ""


class TeacherSize(NamedTuple):
    """A model that an instance in training learns from, as far as memory is concerned."""

    model: ModelConfig
    fmt: WeightFormat

    def states_bytes(self, num_tokens: int) -> int:
        """What lives from its first layer to the heads: the sum between its layers, and the states that are kept."""
        return 2 * num_tokens * self.model.hidden_size * self.fmt.dtype.itemsize


class InstanceNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance asks of a backbone."""

    name: str
    mode: Literal["inference", "training"] = "inference"
    max_batch_size: int | None = None
    """Tokens of one micro-batch; training only."""
    rank: int = 0
    """Of its adapter; 0: none."""
    targets: tuple[str, ...] = ()
    """Last names of the projections with an adapter; empty: every one."""
    full: bool = False
    """Trains every weight; in inference, a frozen copy of every weight."""
    scalar: bool = False
    """Has a scalar head."""
    copies: int = 1
    """Places of its adapter in the bank: 2 in training, where the next version is written beside the present."""
    num_draft_steps: int = 0
    """Tokens that are proposed to it at a time."""
    teachers: tuple[TeacherSize, ...] = ()
    """Models that it learns from."""

    @property
    def trains(self) -> bool:
        """It is in training."""
        return self.mode == "training"


def training_need(max_batch_size: int, rank: int, targets: tuple[str, ...] = ()) -> InstanceNeed:
    """An instance in training with an adapter of this rank, or with every weight if that is 0."""
    return InstanceNeed(
        name="training",
        mode="training",
        max_batch_size=max_batch_size,
        rank=rank,
        targets=targets,
        full=rank == 0,
        copies=2 if rank else 1,
    )


def check_needs(needs: Sequence[InstanceNeed]) -> None:
    """Raise `InvalidRequestError` for an instance that cannot be."""
    for need in needs:
        if need.trains and (need.max_batch_size is None or need.max_batch_size < 1):
            raise InvalidRequestError(
                f"{need.name!r} trains, and its max_batch_size is {need.max_batch_size}: give the tokens of one "
                "micro-batch, at least 1",
                field="max_batch_size",
            )
        if need.rank < 0:
            raise InvalidRequestError(
                f"{need.name!r} has rank {need.rank}: give 1 or more, or 0 for none", field="rank"
            )


def rank_rows(config: EngineConfig, needs: Sequence[InstanceNeed]) -> int:
    """Rows of the bank: those of named adapters that may be loaded, and those of instances."""
    named = config.adapter_rank_budget if config.max_adapters else 0
    return named + sum(need.rank * need.copies for need in needs)


def bank_row(model: ModelConfig, config: EngineConfig, fmt: WeightFormat, needs: Sequence[InstanceNeed]) -> PlanRow:
    """The adapter bank."""
    rows = rank_rows(config, needs)
    return PlanRow("adapters", rows * lora_bytes_per_rank(model, fmt), f"{rows} rank rows")


def instance_rows(model: ModelConfig, fmt: WeightFormat, needs: Sequence[InstanceNeed]) -> list[PlanRow]:
    """What each instance has for itself: masters, gradients, moments; heads; a copy of the weights."""
    rows = []
    for need in needs:
        if need.trains:
            numbers = trained_numbers(model, need)
            own = not need.full or fmt.dtype.itemsize != _FP32_BYTES
            what = "masters, gradients, moments" if own else "gradients, moments"
            size = num_state_bytes(numbers, own_masters=own)
            rows.append(PlanRow(f"{need.name}: optimizer", size, f"{what} of {numbers:,} numbers"))
        elif need.full:
            size = need.copies * sum(weight_bytes(model, fmt).values())
            rows.append(PlanRow(f"{need.name}: weights", size, "a frozen copy"))
    return rows


def trained_numbers(model: ModelConfig, need: InstanceNeed) -> int:
    """How many numbers an instance trains."""
    head = model.hidden_size if need.scalar else 0
    if need.full:
        return num_parameters(model, with_head=not need.scalar) + head
    return (need.rank * lora_parameters(model, need.targets) if need.rank else 0) + head


def training_footprint(model: ModelConfig, fmt: WeightFormat, needs: Sequence[InstanceNeed]) -> Footprint | None:
    """One micro-batch, of the largest `max_batch_size`, with gradients to everything that any instance trains."""
    sizes = [need.max_batch_size or 0 for need in needs if need.trains]
    if not sizes:
        return None
    num_tokens = max(sizes)
    teachers = [teacher for need in needs if need.trains for teacher in need.teachers]
    return footprint(model, fmt, num_tokens, _trained(needs))._replace(
        states=max((teacher.states_bytes(num_tokens) for teacher in teachers), default=0),
        teacher=max((reading_bytes(*teacher, num_tokens) for teacher in teachers), default=0),
    )


def _trained(needs: Sequence[InstanceNeed]) -> Trained:
    training = [need for need in needs if need.trains]
    chosen = [need.targets for need in training if need.rank]
    targets = (
        None if not chosen else () if () in chosen else tuple(sorted({name for names in chosen for name in names}))
    )
    language = any(not need.scalar for need in training)
    rank = max((need.rank or 0 for need in training), default=0)
    return Trained(any(need.full for need in training), targets, language, rank)


def num_draft_steps(needs: Sequence[InstanceNeed]) -> int:
    """Tokens that are proposed to a sequence at a time, at most."""
    return max((need.num_draft_steps for need in needs), default=0)


def sampled_rows(scheduler: SchedulerConfig, needs: Sequence[InstanceNeed]) -> int:
    """Tokens that one step samples at most: one of each sequence, and one for each proposal."""
    return verified_rows(scheduler, num_draft_steps(needs))


def working_row(
    model: ModelConfig, fmt: WeightFormat, scheduler: SchedulerConfig, num_sampled: int, training_slice: int
) -> PlanRow:
    """Memory that steps and slices, which never run at the same time, take and give back."""
    tokens = scheduler.max_batch_tokens
    assert tokens is not None
    kinds = {
        f"a step of {tokens} tokens": activation_bytes(model, fmt, tokens),
        f"sampling {num_sampled} tokens": logits_bytes(model, num_sampled),
        "a slice of training": training_slice,
    }
    note = max(kinds, key=lambda kind: kinds[kind])
    return PlanRow("activations", kinds[note], f"most in {note}")


def training_rows(
    model: ModelConfig,
    fmt: WeightFormat,
    scheduler: SchedulerConfig,
    num_sampled: int,
    training: Footprint | None,
    room: int,
) -> tuple[tuple[PlanRow, ...], int, int]:
    """(rows of activations, layers that are kept, of these whole): what fits, so that least is computed twice.

    Before a layer runs again, all compute their norms and gates again: a third of their bytes for 2 % of their time.
    """
    if training is None:
        return _with_gaps((working_row(model, fmt, scheduler, num_sampled, 0),), fmt), 0, 0
    num_layers = len(training.saved)
    choices = [(num_layers, num_whole) for num_whole in range(num_layers, -1, -1)]
    choices += [(num_kept, 0) for num_kept in range(num_layers - 1, -1, -1)]
    for num_kept, num_whole in choices:
        kept = PlanRow(
            "training activations", training.resident(num_kept, num_whole), _kept_note(num_layers, num_kept, num_whole)
        )
        working = working_row(model, fmt, scheduler, num_sampled, training.slice(num_kept, num_whole))
        rows = _with_gaps((kept, working), fmt)
        if sum(row.num_bytes for row in rows) <= room:
            break
    return rows, num_kept, num_whole


def _kept_note(num_layers: int, num_kept: int, num_whole: int) -> str:
    if num_whole == num_layers:
        return "all kept"
    if num_kept == num_layers:
        return f"all kept; {num_layers - num_whole} layers compute norms and gates again"
    return f"of {num_kept} of {num_layers} layers, without norms and gates; the others are recomputed"


def _with_gaps(rows: tuple[PlanRow, ...], fmt: WeightFormat) -> tuple[PlanRow, ...]:
    """These rows and what the allocator reserves for them without filling it."""
    if fmt.device.type == "cpu":
        return rows
    gaps = round(_FRAGMENTED_SHARE * sum(row.num_bytes for row in rows))
    return (*rows, PlanRow("fragmentation", gaps, "reserved by the allocator beyond the activations"))
