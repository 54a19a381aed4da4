"""The input of one step: flat arrays that every device can run as they are.

Shapes: T tokens, S sequences of the batch, M blocks of the longest one, R rows that sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harmonia.engine.sequence import Sequence
from harmonia.kernels.lora import LoraSegment


@dataclass(frozen=True, slots=True)
class Work:
    """The share of one sequence in a step: tokens `start` to `start + count`."""

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
    fed_rows: np.ndarray
    """Rows of `token_ids_T` whose value is still on the device, in the last ids of `fed_slots`."""
    fed_slots: np.ndarray
    positions_T: np.ndarray
    slots_T: np.ndarray
    block_table_SM: np.ndarray
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    sample_rows_R: np.ndarray
    """Rows of the flat tokens whose hidden state is sampled from."""
    segments: tuple[LoraSegment, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch."""
        return len(self.token_ids_T)

    @property
    def sampled(self) -> tuple[Work, ...]:
        """Work that samples, in the order of `sample_rows_R`."""
        return tuple(work for work in self.work if work.samples)


def build_batch(work: list[Work], block_table: np.ndarray, block_size: int) -> Batch:
    """Flatten scheduled work; `block_table` has a row per slot of running sequences."""
    decodes = [item for item in work if item.count == 1]
    prefills = [item for item in work if item.count > 1]
    ordered = tuple(sorted(decodes, key=_adapter) + sorted(prefills, key=_adapter))
    counts = np.fromiter((item.count for item in ordered), np.int64, len(ordered))
    starts = np.fromiter((item.start for item in ordered), np.int64, len(ordered))
    rows = np.fromiter((item.sequence.slot for item in ordered), np.int64, len(ordered))
    ends = np.cumsum(counts)
    positions_T = np.arange(int(ends[-1])) + np.repeat(starts - (ends - counts), counts)
    context_lens = starts + counts
    table_SM = block_table[rows, : -(-int(context_lens.max()) // block_size)]
    block_of_token = np.repeat(np.arange(len(ordered)), counts), positions_T // block_size
    token_ids_T, fed = _token_ids(ordered, ends)
    samples = np.fromiter((item.samples for item in ordered), np.bool_, len(ordered))
    return Batch(
        work=ordered,
        num_decodes=len(decodes),
        token_ids_T=token_ids_T,
        fed_rows=ends[fed] - 1,
        fed_slots=rows[fed],
        positions_T=positions_T,
        slots_T=table_SM[block_of_token].astype(np.int64) * block_size + positions_T % block_size,
        block_table_SM=table_SM,
        query_lens=tuple(counts.tolist()),
        context_lens=tuple(context_lens.tolist()),
        sample_rows_R=(ends - 1)[samples],
        segments=_segments(ordered, ends),
    )


def _adapter(item: Work) -> int:
    slot = item.sequence.instance.adapter_slot
    return -1 if slot is None else slot


def _token_ids(ordered: tuple[Work, ...], ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Known token ids, and which sequences' last one is unknown yet."""
    token_ids_T = np.zeros(int(ends[-1]), dtype=np.int64)
    fed = np.zeros(len(ordered), dtype=np.bool_)
    for index, (item, end) in enumerate(zip(ordered, ends.tolist(), strict=True)):
        stop = item.start + item.count
        known = min(stop, item.sequence.num_tokens)
        token_ids_T[end - item.count : end - (stop - known)] = item.sequence.tokens[item.start : known]
        fed[index] = stop > known
    return token_ids_T, fed


def _segments(ordered: tuple[Work, ...], ends: np.ndarray) -> tuple[LoraSegment, ...]:
    """Runs of neighbouring tokens that use the same adapter."""
    segments: list[LoraSegment] = []
    for item, end in zip(ordered, ends.tolist(), strict=True):
        slot = item.sequence.instance.adapter_slot
        if slot is None:
            continue
        start = end - item.count
        if segments and segments[-1].slot == slot and segments[-1].stop == start:
            start = segments.pop().start
        segments.append(LoraSegment(start, end, slot))
    return tuple(segments)
