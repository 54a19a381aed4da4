"""Paged caches and layouts for tests of attention."""

import torch

from harmonia.kernels.pages import LayerCache, PagedLayout


def layout_of(lens: list[tuple[int, int]], block_size: int) -> tuple[PagedLayout, int]:
    """Sequences of (queries, tokens cached before them) in shuffled blocks, and the number of blocks."""
    contexts = [queries + cached for queries, cached in lens]
    counts = [-(-context // block_size) for context in contexts]
    blocks_B = torch.randperm(sum(counts) + 2)[: sum(counts)]
    block_starts = [sum(counts[:row]) for row in range(len(lens))]
    slots = []
    for first, (queries, cached) in zip(block_starts, lens, strict=True):
        positions = torch.arange(cached, cached + queries)
        slots.append(blocks_B[first + positions // block_size] * block_size + positions % block_size)
    layout = PagedLayout(
        slots_T=torch.cat(slots),
        blocks_B=blocks_B.int(),
        block_starts_S=torch.tensor(block_starts, dtype=torch.int32),
        context_lens_S=torch.tensor(contexts, dtype=torch.int32),
        query_starts_S1=torch.tensor([0, *(queries for queries, _ in lens)]).cumsum(0).int(),
        query_lens=tuple(queries for queries, _ in lens),
        context_lens=tuple(contexts),
        num_decodes=next((row for row, (queries, _) in enumerate(lens) if queries != 1), len(lens)),
    )
    return layout, sum(counts) + 2


def cache_of(num_blocks: int, block_size: int, kv_heads: int, size: int) -> LayerCache:
    return LayerCache(*torch.randn(2, num_blocks, block_size, kv_heads, size))


def poison_unused(cache: LayerCache, layout: PagedLayout, block_size: int) -> None:
    """NaN wherever no sequence has a token: nothing of that may be seen."""
    used = torch.zeros(cache.k_NPGD.shape[:2], dtype=torch.bool)
    for first, context in zip(layout.block_starts_S.tolist(), layout.context_lens, strict=True):
        positions = torch.arange(context)
        used[layout.blocks_B[first + positions // block_size].long(), positions % block_size] = True
    cache.k_NPGD[~used] = torch.nan
    cache.v_NPGD[~used] = torch.nan


def packed_cache(
    lens: list[tuple[int, int]], q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor
) -> tuple[PagedLayout, LayerCache, int]:
    """A cache where one sequence holds these keys and values up to its length, others random ones, and its row.

    The sequence is the first in `lens` that has as many queries as `q_THD`.
    """
    block_size = 16
    lens = sorted(lens, key=lambda pair: pair[0] != 1)
    row = next(row for row, (queries, _) in enumerate(lens) if queries == len(q_THD))
    layout, num_blocks = layout_of(lens, block_size)
    cache = cache_of(num_blocks, block_size, *k_TGD.shape[1:])
    cache = LayerCache(*(x.to(k_TGD) for x in (cache.k_NPGD, cache.v_NPGD)))
    positions = torch.arange(layout.context_lens[row])
    blocks = layout.blocks_B[layout.block_starts_S[row] + positions // block_size].long()
    cache.k_NPGD[blocks, positions % block_size] = k_TGD[: len(positions)]
    cache.v_NPGD[blocks, positions % block_size] = v_TGD[: len(positions)]
    poison_unused(cache, layout, block_size)
    return layout, cache, row


def graph_layout(
    layout: PagedLayout, num_tokens: int, invariant: bool, num_sequences: int | None = None
) -> PagedLayout:
    """Filled up as for a captured graph, with nothing known on the host: decodes, or prompts of so many sequences."""

    def filled(known: torch.Tensor, size: int, padding: int) -> torch.Tensor:
        return torch.cat((known, torch.full((size - len(known),), padding, dtype=known.dtype)))

    num_rows = num_tokens if num_sequences is None else num_sequences
    return PagedLayout(
        slots_T=filled(layout.slots_T, num_tokens, -1),
        blocks_B=filled(layout.blocks_B, len(layout.blocks_B) + 7, 10**9),
        block_starts_S=filled(layout.block_starts_S, num_rows, 0),
        context_lens_S=filled(layout.context_lens_S, num_rows, 0),
        query_starts_S1=filled(layout.query_starts_S1, num_rows + 1, len(layout.slots_T)),
        query_lens=(),
        context_lens=(),
        num_decodes=num_tokens if num_sequences is None else 0,
        invariant=invariant,
    )
