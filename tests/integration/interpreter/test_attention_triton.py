"""Attention kernels for a GPU, in Triton's interpreter: against the plain version, and against themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonia.kernels.attention import paged_attention
from harmonia.kernels.packed_attention import packed_attention
from harmonia.kernels.pages import LayerCache, PagedLayout
from tests.unit.kernels.gradients import assert_close, gradients
from tests.unit.kernels.pages import cache_of, graph_layout, layout_of, packed_cache, poison_unused

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has these at full size")

LENS = st.lists(
    st.tuples(st.sampled_from((1, 1, 2, 5, 33, 40)), st.sampled_from((0, 1, 15, 16, 31, 70))), min_size=1, max_size=3
).map(lambda lens: sorted(lens, key=lambda pair: pair[0] != 1))
HEADS = st.sampled_from(((1, 1), (3, 1), (4, 2), (5, 5), (14, 2), (40, 1)))
SIZES, BLOCK_SIZES, WINDOWS = (
    st.sampled_from((8, 16, 20, 72)),
    st.sampled_from((4, 16, 20)),
    st.sampled_from((0, 1, 9, 40)),
)


@settings(max_examples=12)
@given(LENS, HEADS, SIZES, BLOCK_SIZES, WINDOWS, st.booleans(), st.integers(0, 1000))
def test_agrees_with_the_plain_version(lens, heads, size, block_size, window, invariant, seed):
    torch.manual_seed(seed)
    layout, num_blocks = layout_of(lens, block_size)
    cache = cache_of(num_blocks, block_size, heads[1], size)
    q_THD = torch.randn(len(layout.slots_T), heads[0], size)
    expected = paged_attention(q_THD, cache, layout, size**-0.5, window, impl="eager")
    poison_unused(cache, layout, block_size)
    actual = paged_attention(q_THD, cache, replace(layout, invariant=invariant), size**-0.5, window, impl="triton")
    assert (actual - expected).abs().max() <= 1e-5


@settings(max_examples=6)
@given(
    st.lists(st.sampled_from((1, 15, 16, 17, 31, 64, 100)), min_size=1, max_size=3), st.sampled_from(((4, 2), (3, 1))),
    st.sampled_from((2, 4, 16)), st.sampled_from((0, 0, 5, 60)), st.integers(0, 1000),
)  # fmt: skip
def test_the_number_of_splits_does_not_matter(context_lens, heads, splits, window, seed):
    from harmonia.kernels.attention_decode_triton import decode_attention

    torch.manual_seed(seed)
    layout, num_blocks = layout_of([(1, length - 1) for length in context_lens], 16)
    cache, q_THD = cache_of(num_blocks, 16, heads[1], 16), torch.randn(len(context_lens), heads[0], 16)
    poison_unused(cache, layout, 16)

    def attention(splits):
        return decode_attention(q_THD, cache.k_NPGD, cache.v_NPGD, layout, 0.25, window, splits=splits)

    expected = attention(1)
    assert_close(attention(splits), expected, tolerance=1e-5)
    (scratch,) = layout.derived.values()
    for tensor in scratch:
        tensor.fill_(torch.nan)
    assert_close(attention(splits), expected, tolerance=1e-5)  # the next layer finds everything as the first did


# Pairs of a sequence and a key/value head, padded head size: tile, warps, splits on 132 processors.
CHOICES = {
    (8, 128): (64, 4, 16),
    (16, 128): (64, 4, 16),
    (17, 128): (16, 1, 16),
    (64, 128): (16, 1, 8),
    (64, 64): (16, 1, 8),
    (64, 256): (32, 4, 4),
    (65, 128): (64, 4, 4),
    (128, 128): (64, 4, 2),
    (512, 128): (64, 4, 1),
}


@pytest.mark.parametrize("case", CHOICES, ids=str)
def test_few_sequences_take_small_tiles_and_more_splits(case):
    from harmonia.kernels.attention_decode_triton import decode_choice, num_splits

    choice = decode_choice(*case, torch.bfloat16)
    splits = num_splits(case[0], choice.per_processor * 132)
    assert (choice.tile, choice.warps, splits) == CHOICES[case]
    assert decode_choice(*case, torch.float32).warps == 4


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("num_rows", [4, 70])
def test_rows_of_a_graph_without_a_sequence_give_zeros(invariant, num_rows):
    torch.manual_seed(0)
    layout, num_blocks = layout_of([(1, 20), (1, 0), (1, 50)], 4)
    cache = cache_of(num_blocks, 4, 1, 16)
    q_THD = torch.randn(num_rows, 2, 16)
    expected = paged_attention(q_THD[:3], cache, layout, 0.25, 0, impl="eager")
    poison_unused(cache, layout, 4)
    captured = graph_layout(layout, num_rows, invariant)
    actual = paged_attention(q_THD, cache, captured, 0.25, 0, impl="triton")
    assert_close(actual[:3], expected, tolerance=1e-5)
    assert not actual[3:].any()


@settings(max_examples=8)
@given(LENS, WINDOWS, st.sampled_from((0, 1, 30)), st.sampled_from((0, 1, 5)), st.booleans())
def test_prompts_of_a_graph_see_what_they_see_without_one(lens, window, more_tokens, more_sequences, invariant):
    torch.manual_seed(0)
    layout, num_blocks = layout_of(lens, 16)
    cache = cache_of(num_blocks, 16, 2, 16)
    num_tokens, num_sequences = len(layout.slots_T) + more_tokens, len(lens) + more_sequences
    q_THD = torch.randn(num_tokens, 4, 16)
    expected = paged_attention(q_THD[: len(layout.slots_T)], cache, layout, 0.25, window, impl="eager")
    poison_unused(cache, layout, 16)
    captured = graph_layout(layout, num_tokens, invariant, num_sequences)
    actual = paged_attention(q_THD, cache, captured, 0.25, window, impl="triton")
    assert_close(actual[: len(expected)], expected, tolerance=1e-5)


@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
@pytest.mark.parametrize("window", [0, 37])
def test_invariant_results_are_the_same_bits_in_any_chunk_and_pack(heads, window, monkeypatch):
    monkeypatch.setattr(np, "matmul", matmul_in_order)
    torch.manual_seed(0)
    length, size = 75, 16
    q_THD, k_TGD, v_TGD = torch.randn(length, heads[0], size), *torch.randn(2, length, heads[1], size)
    whole = packed_attention(q_THD, k_TGD, v_TGD, (length,), 0.25, window, "triton", invariant=True)
    plain = packed_attention(q_THD, k_TGD, v_TGD, (length,), 0.25, window, "eager")
    assert_close(whole, plain, tolerance=1e-5)

    pack = [torch.cat((x_TXD[:20], x_TXD, -x_TXD[:20])) for x_TXD in (q_THD, k_TGD, v_TGD)]
    among = packed_attention(*pack, (20, length, 20), 0.25, window, "triton", invariant=True)
    assert torch.equal(among[20:-20], whole)

    for chunk in (length, 40, 9):
        for first in range(0, length, chunk):
            queries = slice(first, min(first + chunk, length))
            company = [(1, 3), (queries.stop - first, first)] if chunk < length else [(length, 0)]
            out_THD = chunk_attention(q_THD[queries], k_TGD, v_TGD, company, window)
            assert torch.equal(out_THD, whole[queries])
    for position in (0, 1, 31, 32, 74):
        out_THD = chunk_attention(q_THD[position : position + 1], k_TGD, v_TGD, [(1, position), (1, 12)], window)
        assert torch.equal(out_THD, whole[position : position + 1])


def matmul_in_order(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The interpreter's product; numpy's own sums a row in another order where the row is elsewhere in the matrix."""
    total = np.zeros((a.shape[0], b.shape[1]), dtype)
    for k in range(a.shape[1]):
        total += a[:, k : k + 1] * b[k]
    return total


def chunk_attention(q_THD, k_TGD, v_TGD, lens, window):
    """Of the sequence in `lens` that has these queries, in a cache beside others."""
    layout, cache, row = packed_cache(lens, q_THD, k_TGD, v_TGD)
    others = torch.randn(len(layout.slots_T), *q_THD.shape[1:])
    queries = slice(layout.query_starts_S1[row], layout.query_starts_S1[row + 1])
    others[queries] = q_THD
    return paged_attention(others, cache, replace(layout, invariant=True), 0.25, window, impl="triton")[queries]


def test_packed_forward_keeps_what_backward_needs():
    torch.manual_seed(0)
    tensors = torch.randn(45, 4, 16), torch.randn(45, 2, 16), torch.randn(45, 2, 16)
    ours = gradients(lambda *qkv: packed_attention(*qkv, (40, 5), 0.25, 0, "triton"), *tensors)
    plain = gradients(lambda *qkv: packed_attention(*qkv, (40, 5), 0.25, 0, "eager"), *tensors)
    for actual, expected in zip(ours, plain, strict=True):
        assert_close(actual, expected, tolerance=1e-5)


def test_half_precision():
    torch.manual_seed(0)
    layout, num_blocks = layout_of([(1, 40), (20, 30)], 16)
    cache = cache_of(num_blocks, 16, 2, 16)
    cache = LayerCache(cache.k_NPGD.half(), cache.v_NPGD.half())
    q_THD = torch.randn(21, 4, 16).half()
    expected = paged_attention(q_THD, cache, layout, 0.25, 0, impl="eager")
    assert_close(paged_attention(q_THD, cache, layout, 0.25, 0, impl="triton"), expected, tolerance=0.01)


def test_queries_may_be_slices_and_batches_empty():
    layout, num_blocks = layout_of([(1, 40), (3, 4)], 16)
    cache, qkv_TXD = cache_of(num_blocks, 16, 2, 16), torch.randn(4, 8, 16)
    expected = paged_attention(qkv_TXD[:, :4], cache, layout, 0.2, 0, impl="eager")
    assert_close(paged_attention(qkv_TXD[:, :4], cache, layout, 0.2, 0, impl="triton"), expected, tolerance=1e-5)
    nothing = torch.empty(0, dtype=torch.int32)
    empty = PagedLayout(nothing, nothing, nothing, nothing, torch.zeros(1, dtype=torch.int32), (), (), 0)
    for invariant in (False, True):
        layout = replace(empty, invariant=invariant, derived={})
        assert paged_attention(torch.empty(0, 4, 16), cache, layout, 0.2, 0, impl="triton").shape == (0, 4, 16)


def test_tiles_cover_every_query_once_with_the_longest_walk_first():
    from harmonia.kernels.attention_prefill_triton import prefill_tiles

    query_lens, context_lens = (1, 1, 5, 70, 33), (4, 900, 300, 70, 33)
    tiles = prefill_tiles(query_lens, context_lens, 32, 2).tolist()
    tokens = sorted(token for _, first, count, _ in tiles for token in range(first, first + count))
    assert tokens == list(range(2, 110))
    walks = [context_lens[sequence] - back + count for sequence, _, count, back in tiles]
    assert walks == sorted(walks, reverse=True) == [300, 70, 64, 33, 32, 32]


@given(st.lists(st.integers(0, 70), min_size=1, max_size=6), st.sampled_from((1, 16, 32)), st.integers(0, 3))
def test_tiles_of_unknown_lengths_are_those_of_known_ones_and_empty_ones(query_lens, queries, num_missing):
    from harmonia.kernels.attention_prefill_triton import prefill_tiles, tiles_on_device

    known = prefill_tiles(tuple(query_lens), tuple(query_lens), queries, 0).tolist()
    starts_S1 = torch.tensor([0, *query_lens, *[0] * num_missing], dtype=torch.int32).cumsum(0).int()
    found = tiles_on_device(starts_S1, sum(query_lens) + 7, queries).tolist()
    assert sorted(tile for tile in found if tile[2]) == sorted(known)
