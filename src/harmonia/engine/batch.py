"""The input of one step: flat arrays that every device can run as they are.

Where tokens were proposed, every token of the sequence is a row of its own, with its own context: a kernel does for it
what it would do without proposals. So are the few tokens that a draft lacks of a sequence.
Shapes: T tokens, S rows of the batch (shares of sequences, and single proposals), B blocks of all of them, R rows that
sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harmonia.engine.sequence import Drafter, Sequence
from harmonia.engine.speculation import Choice
from harmonia.kernels.lora import LoraSegment
from harmonia.protocol.instances import MAX_DRAFT_STEPS


@dataclass(slots=True, eq=False)
class Work:
    """The share of one sequence in a step: tokens `start` to `start + count`. Not frozen: that takes twice the time."""

    sequence: Sequence
    start: int
    count: int
    epoch: int
    samples: bool
    """The last of these tokens yields the next one (or the embedding)."""
    num_drafted: int = 0
    """Of these tokens, the last ones that are proposals: each of them, and the one before, yields a token."""
    proposal: int = 0
    """Which proposal its last token is; 0: none."""
    apart: bool = False
    """Each of its tokens is a row of the batch by itself."""

    @property
    def num_sampled(self) -> int:
        """Tokens that it yields."""
        return self.num_drafted + 1 if self.samples else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of serving. Single-token sequences come first; neighbours share adapters where possible."""

    work: tuple[Work, ...]
    rows: tuple[Work, ...]
    """`work`, with each token by itself where it is apart."""
    num_decodes: int
    token_ids_T: np.ndarray
    fed_slots_T: np.ndarray
    """Where a token's value is still on the device: the place of `kept_places`. -1: it is known."""
    positions_T: np.ndarray
    slots_T: np.ndarray
    """block * P + offset at which each token's key and value are kept."""
    blocks_B: np.ndarray
    """int32: the blocks of each sequence in order, one sequence after another."""
    block_starts_S: np.ndarray
    """int32: where each sequence's begin in `blocks_B`."""
    query_starts_S1: np.ndarray
    """Where each sequence's tokens begin, and where the last one's end."""
    context_lens_S: np.ndarray
    """int32: tokens of each sequence in the cache once this step's are written."""
    generating: tuple[Work, ...]
    """Rows that sample a token."""
    sample_rows_R: np.ndarray
    """Rows of the flat tokens whose hidden state `generating` samples from."""
    sample_slots_R: np.ndarray
    """Where the ids that they sample are kept on the device."""
    adapter_slots_T: np.ndarray
    """Slot of each token's adapter, -1 without."""
    segments: tuple[LoraSegment, ...]

    @property
    def num_drafted(self) -> int:
        """Proposals in the batch."""
        return sum(item.num_drafted for item in self.work) if len(self.rows) > len(self.work) else 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch."""
        return len(self.token_ids_T)

    @property
    def is_decode(self) -> bool:
        """Every row has one token and samples the next one."""
        return self.num_tokens == len(self.generating)

    @property
    def has_single_tokens(self) -> bool:
        """Every row has one token."""
        return self.num_decodes == len(self.rows)

    def starts(self) -> Iterator[tuple[Work, int]]:
        """Each share of work with the row of its first token."""
        return zip(self.rows, self.query_starts_S1.tolist(), strict=False)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What runs in the next step.

    Arrays are made when a pass is launched, so that the device computes the first while the host makes the others.
    """

    work: list[Work]
    block_table: np.ndarray
    """A row for each slot of running sequences."""
    block_size: int
    drafting: tuple[list[Work], ...]
    """What the draft computes before: first what it lacks of each sequence, then one proposal after another."""
    choice: Choice
    """Proposals that sequences with a draft were to get, as far as they could."""
    is_typical: bool
    """They could, and the draft lacked little."""

    def passes(self) -> Iterator[Batch]:
        """The draft's batches."""
        for place, work in enumerate(self.drafting, start=1):
            yield build_batch(work, self.block_table, self.block_size, keep_as=place)

    def batch(self) -> Batch:
        """The target's batch."""
        return build_batch(self.work, self.block_table, self.block_size)


def kept_places(slots_S: np.ndarray, proposals_S: np.ndarray | int, max_running: int) -> np.ndarray:
    """Where the device keeps the last sampled id of running slots (proposal 0), or one of their proposals."""
    return slots_S + max_running * proposals_S


def num_kept_places(max_running: int) -> int:
    """Places of all slots and proposals, and one more for what nobody will read."""
    return (1 + MAX_DRAFT_STEPS) * max_running + 1


def build_batch(work: list[Work], block_table: np.ndarray, block_size: int, *, keep_as: int = 0) -> Batch:
    """Flatten scheduled work; `block_table` has a row per slot of running sequences.

    keep_as: which proposal the sampled ids are; 0: none. A draft makes proposals, and it has no adapters.
    Per sequence there is nothing but the gathering of a few numbers: 256 decodes take a tenth of a millisecond.
    """
    ordered, num_singles = _ordered(work)
    rows, num_rows_W = _rows(ordered)
    num_decodes = num_singles + len(rows) - len(ordered)
    max_running = block_table.shape[0]
    counts = np.array([item.count for item in rows])
    starts = np.array([item.start for item in rows])
    slots = np.array([item.sequence.slot for item in rows])
    adapters = np.full(len(rows), -1) if keep_as else np.array([_adapter(item) for item in rows])
    generating = [row for row, item in enumerate(rows) if item.samples and item.sequence.generates]
    generating_R = np.array(generating, dtype=np.int64)
    context_lens = starts + counts
    fed = context_lens > np.array([item.sequence.num_tokens for item in rows])
    kept = slots
    if keep_as or len(rows) > len(ordered):
        fed, kept = _fed(rows, fed, slots, max_running)
    ends = counts.cumsum()

    def each_token(values_S: np.ndarray) -> np.ndarray:
        return values_S if num_decodes == len(rows) else values_S.repeat(counts)

    positions_T = np.arange(ends[-1]) + each_token(starts - (ends - counts))
    first_places = slots * block_table.shape[1]
    blocks_T = block_table.take(each_token(first_places) + positions_T // block_size)
    first_W = num_rows_W.cumsum() - num_rows_W
    num_blocks_W = (context_lens[first_W + num_rows_W - 1] + (block_size - 1)) // block_size
    block_starts_W = num_blocks_W.cumsum() - num_blocks_W
    num_blocks = int(block_starts_W[-1] + num_blocks_W[-1])
    if num_decodes == len(rows):
        fed_slots_T = np.where(fed, kept, -1)
    else:
        fed_slots_T = np.full(len(positions_T), -1)
        fed_slots_T[ends[fed] - 1] = kept[fed]
    return Batch(
        work=tuple(ordered),
        rows=tuple(rows),
        num_decodes=num_decodes,
        token_ids_T=_token_ids(rows, ends, fed),
        fed_slots_T=fed_slots_T,
        positions_T=positions_T,
        slots_T=blocks_T.astype(np.int64) * block_size + positions_T % block_size,
        blocks_B=block_table.take(
            np.arange(num_blocks) + (first_places[first_W] - block_starts_W).repeat(num_blocks_W)
        ),
        block_starts_S=block_starts_W.repeat(num_rows_W).astype(np.int32),
        query_starts_S1=np.concatenate(([0], ends)),
        context_lens_S=context_lens.astype(np.int32),
        generating=tuple([rows[row] for row in generating]),
        sample_rows_R=ends[generating_R] - 1,
        sample_slots_R=_kept_samples(ordered, slots, num_rows_W, keep_as, max_running)[generating_R],
        adapter_slots_T=each_token(adapters),
        segments=_segments(adapters, ends),
    )


def _rows(ordered: list[Work]) -> tuple[list[Work], np.ndarray]:
    """Each token by itself where it is to be so, and how many rows each share became."""
    if not any(item.apart for item in ordered):
        return ordered, np.ones(len(ordered), dtype=np.int64)
    rows: list[Work] = []
    for item in ordered:
        if not item.apart:
            rows.append(item)
            continue
        last_known = item.count - 1 - item.num_drafted
        for place in range(item.count):
            samples = item.samples and place >= last_known
            proposal = max(0, place - last_known)
            rows.append(Work(item.sequence, item.start + place, 1, item.epoch, samples, proposal=proposal))
    return rows, np.array([item.count if item.apart else 1 for item in ordered])


def _fed(rows: list[Work], fed: np.ndarray, slots: np.ndarray, max_running: int) -> tuple[np.ndarray, np.ndarray]:
    """Whose last tokens are on the device only, and where; those that no draft made stand with the known ones."""
    proposals = np.array([item.proposal for item in rows])
    is_written = np.array([item.sequence.drafter is not Drafter.MODEL for item in rows])
    return fed & ~(is_written & (proposals > 0)), kept_places(slots, proposals, max_running)


def _kept_samples(
    ordered: list[Work], slots: np.ndarray, num_rows_W: np.ndarray, keep_as: int, max_running: int
) -> np.ndarray:
    """Where each row's sampled id is kept: nowhere if the host must say first how many of them count."""
    kept = kept_places(slots, keep_as, max_running)
    if len(slots) == len(ordered):
        return kept
    drafted = np.array([item.num_drafted > 0 for item in ordered]).repeat(num_rows_W)
    return np.where(drafted, num_kept_places(max_running) - 1, kept)


def _ordered(work: list[Work]) -> tuple[list[Work], int]:
    """Decodes first, equal adapters together; and how many of the first there are."""
    decodes = [item for item in work if item.count == 1 or item.apart]
    prefills = [item for item in work if item.count > 1 and not item.apart] if len(decodes) < len(work) else []
    if any(item.sequence.instance.adapter_slot is not None for item in work):
        decodes.sort(key=_adapter)
        prefills.sort(key=_adapter)
    return decodes + prefills, len(decodes)


def _adapter(item: Work) -> int:
    slot = item.sequence.instance.adapter_slot
    return -1 if slot is None else slot


def _token_ids(ordered: list[Work], ends: np.ndarray, fed: np.ndarray) -> np.ndarray:
    """Known token ids; 0 where the last one of a sequence is unknown yet."""
    token_ids_T = np.zeros(ends[-1], dtype=np.int64)
    if len(token_ids_T) == np.count_nonzero(fed):
        return token_ids_T
    for item, is_fed, end in zip(ordered, fed.tolist(), ends.tolist(), strict=True):
        num_known = item.count - is_fed
        if num_known:
            first = end - item.count
            token_ids_T[first : first + num_known] = item.sequence.tokens[item.start : item.start + num_known]
    return token_ids_T


def _segments(adapters: np.ndarray, ends: np.ndarray) -> tuple[LoraSegment, ...]:
    """Runs of neighbouring tokens that use the same adapter."""
    if adapters.max() < 0:
        return ()
    last = np.append(np.flatnonzero(np.diff(adapters)), len(adapters) - 1)
    stops, slots = ends[last].tolist(), adapters[last].tolist()
    runs = zip([0, *stops[:-1]], stops, slots, strict=True)
    return tuple(LoraSegment(start, stop, slot) for start, stop, slot in runs if slot >= 0)
