"""The input of one step: flat arrays that every device can run as they are.

Shapes: T tokens, S sequences of the batch, B blocks of all of them, M of the longest one, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harmonia.engine.sequence import Sequence
from harmonia.kernels.lora import LoraSegment


@dataclass(slots=True, eq=False)
class Work:
    """The share of one sequence in a step: tokens `start` to `start + count`. Not frozen: that takes twice the time."""

    sequence: Sequence
    start: int
    count: int
    epoch: int
    samples: bool
    """The last of these tokens yields the next one (or the embedding)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of serving. Single-token sequences come first; neighbours share adapters where possible."""

    work: tuple[Work, ...]
    num_decodes: int
    token_ids_T: np.ndarray
    fed_slots_T: np.ndarray
    """Where a token's value is still on the device: the running slot whose last sampled id it is. -1: it is known."""
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
    """Work that samples a token."""
    sample_rows_R: np.ndarray
    """Rows of the flat tokens whose hidden state `generating` samples from."""
    sample_slots_R: np.ndarray
    """Running slots of `generating`."""
    adapter_slots_T: np.ndarray
    """Slot of each token's adapter, -1 without."""
    segments: tuple[LoraSegment, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch."""
        return len(self.token_ids_T)

    @property
    def is_decode(self) -> bool:
        """Every sequence has one token and samples the next one."""
        return self.num_tokens == len(self.generating)

    def starts(self) -> Iterator[tuple[Work, int]]:
        """Each share of work with the row of its first token."""
        return zip(self.work, self.query_starts_S1.tolist(), strict=False)


def build_batch(work: list[Work], block_table: np.ndarray, block_size: int) -> Batch:
    """Flatten scheduled work; `block_table` has a row per slot of running sequences.

    Per sequence there is nothing but the gathering of a few numbers: 256 decodes take a tenth of a millisecond.
    """
    ordered, num_decodes = _ordered(work)
    sequences = [item.sequence for item in ordered]
    counts = np.array([item.count for item in ordered])
    starts = np.array([item.start for item in ordered])
    rows = np.array([sequence.slot for sequence in sequences])
    adapters = np.array(
        [-1 if item.instance.adapter_slot is None else item.instance.adapter_slot for item in sequences]
    )
    generating = [row for row, item in enumerate(ordered) if item.samples and item.sequence.generates]
    generating_R = np.array(generating, dtype=np.int64)
    context_lens = starts + counts
    fed = context_lens > np.array([sequence.num_tokens for sequence in sequences])
    ends = counts.cumsum()

    def each_token(values_S: np.ndarray) -> np.ndarray:
        return values_S if num_decodes == len(ordered) else values_S.repeat(counts)

    positions_T = np.arange(ends[-1]) + each_token(starts - (ends - counts))
    first_places = rows * block_table.shape[1]
    blocks_T = block_table.take(each_token(first_places) + positions_T // block_size)
    num_blocks_S = (context_lens + (block_size - 1)) // block_size
    block_starts_S = num_blocks_S.cumsum() - num_blocks_S
    num_blocks = int(block_starts_S[-1] + num_blocks_S[-1])
    if num_decodes == len(ordered):
        fed_slots_T = np.where(fed, rows, -1)
    else:
        fed_slots_T = np.full(len(positions_T), -1)
        fed_slots_T[ends[fed] - 1] = rows[fed]
    return Batch(
        work=tuple(ordered),
        num_decodes=num_decodes,
        token_ids_T=_token_ids(ordered, ends, fed),
        fed_slots_T=fed_slots_T,
        positions_T=positions_T,
        slots_T=blocks_T.astype(np.int64) * block_size + positions_T % block_size,
        blocks_B=block_table.take(np.arange(num_blocks) + (first_places - block_starts_S).repeat(num_blocks_S)),
        block_starts_S=block_starts_S.astype(np.int32),
        query_starts_S1=np.concatenate(([0], ends)),
        context_lens_S=context_lens.astype(np.int32),
        generating=tuple([ordered[row] for row in generating]),
        sample_rows_R=ends[generating_R] - 1,
        sample_slots_R=rows[generating_R],
        adapter_slots_T=each_token(adapters),
        segments=_segments(adapters, ends),
    )


def _ordered(work: list[Work]) -> tuple[list[Work], int]:
    """Single tokens first, equal adapters together; and how many of the first there are."""
    decodes = [item for item in work if item.count == 1]
    prefills = [item for item in work if item.count > 1] if len(decodes) < len(work) else []
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
