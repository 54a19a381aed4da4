"""Attention over the paged cache on a GPU: against the plain version in full precision, and against itself."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from harmonia.kernels.attention import paged_attention
from harmonia.kernels.packed_attention import packed_attention
from harmonia.kernels.pages import LayerCache, PagedLayout
from tests.unit.kernels.gradients import assert_close
from tests.unit.kernels.pages import cache_of, graph_layout, layout_of, packed_cache, poison_unused

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

TOLERANCES = {torch.bfloat16: 0.01, torch.float16: 0.002, torch.float32: 1e-5}
DECODES = [(1, 0), (1, 15), (1, 16), (1, 639), (1, 2047), (1, 63), (1, 300)]
MIXED = [(1, 100), (1, 7), (2, 0), (17, 500), (64, 0), (130, 31), (300, 1000), (513, 0)]
PROMPTS = [(1, 100), (2100, 0), (2500, 0)]  # long enough for cuDNN, where that applies
CASES = [  # query heads, key/value heads and their size; window; type: each is compiled for itself
    ((32, 8, 128), 0, torch.bfloat16),
    ((32, 8, 128), 200, torch.bfloat16),
    ((16, 8, 128), 0, torch.float16),
    ((28, 4, 128), 0, torch.bfloat16),
    ((9, 3, 64), 0, torch.bfloat16),
    ((9, 3, 64), 0, torch.float32),
    ((4, 1, 256), 200, torch.bfloat16),
    ((4, 1, 256), 200, torch.float32),
    ((14, 2, 80), 0, torch.bfloat16),
    ((2, 2, 32), 200, torch.bfloat16),
]


def on_gpu(layout: PagedLayout) -> PagedLayout:
    moved = {f.name: getattr(layout, f.name) for f in fields(layout)}
    moved |= {name: value.int().cuda() for name, value in moved.items() if isinstance(value, torch.Tensor)}
    return PagedLayout(**{**moved, "derived": {}})


def problem(lens, heads, dtype, block_size=16):
    """(queries, cache, layout); places of the cache that hold no token are NaN."""
    torch.manual_seed(0)
    layout, num_blocks = layout_of(lens, block_size)
    cache = cache_of(num_blocks, block_size, heads[1], heads[2])
    poison_unused(cache, layout, block_size)
    cache = LayerCache(cache.k_NPGD.to("cuda", dtype), cache.v_NPGD.to("cuda", dtype))
    q_THD = torch.randn(len(layout.slots_T), *heads[::2], device="cuda", dtype=dtype)
    return q_THD, cache, on_gpu(layout)


def exact_attention(q_THD, cache, layout, window):
    exact = LayerCache(cache.k_NPGD.float(), cache.v_NPGD.float())
    return paged_attention(q_THD.float(), exact, layout, q_THD.shape[2] ** -0.5, window, impl="eager")


@pytest.mark.parametrize(("heads", "window", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("lens", [DECODES, MIXED, PROMPTS], ids=["decodes", "mixed", "prompts"])
@pytest.mark.parametrize("invariant", [False, True])
def test_agrees_with_the_plain_version(lens, heads, window, dtype, invariant):
    q_THD, cache, layout = problem(lens, heads, dtype)
    expected = exact_attention(q_THD, cache, layout, window)
    actual = paged_attention(q_THD, cache, replace(layout, invariant=invariant), heads[2] ** -0.5, window)
    assert_close(actual.float(), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("block_size", [8, 16, 20, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_any_block_size_and_slices_of_a_projection(block_size, dtype):
    heads = (8, 2, 64)
    q_THD, cache, layout = problem(MIXED, heads, dtype, block_size)
    expected = exact_attention(q_THD, cache, layout, 0)
    wide_TXD = torch.full((len(q_THD), 12, 64), torch.nan, device="cuda", dtype=dtype)
    wide_TXD[:, :8] = q_THD
    assert_close(paged_attention(wide_TXD[:, :8], cache, layout, 0.125, 0).float(), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("splits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    ("heads", "window"), [((32, 8, 128), 0), ((28, 4, 128), 100), ((9, 3, 64), 0), ((4, 1, 256), 0)]
)
def test_splits_are_merged_whoever_is_done_last(splits, heads, window):
    from harmonia.kernels.attention_decode_triton import decode_attention

    q_THD, cache, layout = problem(DECODES * 8, heads, torch.bfloat16)
    expected = exact_attention(q_THD, cache, layout, window)
    first = None
    for _ in range(20):
        out_THD = torch.full_like(q_THD, torch.nan)
        for partial, stats in layout.derived.values():
            partial.fill_(torch.nan)
            stats.fill_(torch.nan)
        caches = cache.k_NPGD, cache.v_NPGD
        decode_attention(q_THD, *caches, layout, heads[2] ** -0.5, window, splits=splits, out_THD=out_THD)
        assert_close(out_THD.float(), expected, 0.01)
        first = out_THD if first is None else first
        assert torch.equal(out_THD, first)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("num_rows", [1, 8, 64])
def test_a_captured_graph_serves_other_lengths(num_rows, invariant):
    torch.manual_seed(0)
    cache = LayerCache(*torch.randn(2, 2048, 16, 8, 128, device="cuda", dtype=torch.bfloat16))
    q_THD = torch.randn(num_rows, 32, 128, device="cuda", dtype=torch.bfloat16)
    lens = [[(1, (37 * row * (1 + turn) + turn) % 450) for row in range(max(1, num_rows - turn))] for turn in range(3)]
    layouts = [on_gpu(graph_layout(layout_of(turn, 16)[0], num_rows, invariant)) for turn in lens]
    room = max(len(layout.blocks_B) for layout in layouts)
    static = replace(layouts[0], blocks_B=torch.zeros(room, dtype=torch.int32, device="cuda"), derived={})

    def attend(layout):
        first_THD = paged_attention(q_THD, cache, layout, 128**-0.5, 0)  # the second layer uses the same scratch
        return first_THD, paged_attention(-q_THD, cache, layout, 128**-0.5, 0)

    attend(replace(static, derived={}))  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = attend(static)
    for turn, layout in zip(lens, layouts, strict=True):
        static.blocks_B[: len(layout.blocks_B)] = layout.blocks_B
        for name in ("block_starts_S", "context_lens_S", "slots_T"):
            getattr(static, name).copy_(getattr(layout, name))
        for out_THD in outs:
            out_THD.fill_(torch.nan)
        for _ in range(3):
            graph.replay()
        known = on_gpu(replace(layout_of(turn, 16)[0], blocks_B=layout.blocks_B, context_lens_S=layout.context_lens_S))
        known = replace(known, block_starts_S=layout.block_starts_S[: len(turn)])
        for out_THD, sign in zip(outs, (1, -1), strict=True):
            expected = exact_attention(sign * q_THD[: len(turn)], cache, known, 0)
            assert_close(out_THD[: len(turn)].float(), expected, 0.01)
            assert not out_THD[len(turn) :].any()


@pytest.mark.parametrize(("heads", "window", "dtype"), CASES, ids=str)
def test_invariant_results_are_the_same_bits_in_any_chunk_and_pack(heads, window, dtype):
    torch.manual_seed(0)
    length, (num_heads, kv_heads, size) = 700, heads
    scale = size**-0.5
    q_THD = torch.randn(length, num_heads, size).to(dtype)
    k_TGD, v_TGD = torch.randn(2, length, kv_heads, size).to(dtype)

    def packed(copies):
        pack = [torch.cat((x[:90], *[x] * copies, x[:300])).cuda() for x in (q_THD, k_TGD, v_TGD)]
        return packed_attention(*pack, (90, *[length] * copies, 300), scale, window, invariant=True)[90 : 90 + length]

    whole = packed(1)
    exact = packed_attention(q_THD.float(), k_TGD.float(), v_TGD.float(), (length,), scale, window)
    assert_close(whole.float().cpu(), exact, TOLERANCES[dtype])
    assert torch.equal(packed(3), whole)
    spans = [slice(first, min(first + chunk, length)) for chunk in (512, 129) for first in range(0, length, chunk)]
    spans += [slice(position, position + 1) for position in (0, 1, 63, 64, 128, 500, 699)]
    for span in spans:
        lens = [(1, 600), (1, 3), (span.stop - span.start, span.start), (7, 50)]
        lens = lens[2:] if span.stop - span.start == 1 else lens
        layout, cache, row = packed_cache(lens, q_THD[span], k_TGD, v_TGD)
        queries = slice(int(layout.query_starts_S1[row]), int(layout.query_starts_S1[row + 1]))
        some_THD = torch.randn(len(layout.slots_T), num_heads, size).to(dtype)
        some_THD[queries] = q_THD[span]
        on_device = LayerCache(cache.k_NPGD.cuda(), cache.v_NPGD.cuda())
        out_THD = paged_attention(some_THD.cuda(), on_device, replace(on_gpu(layout), invariant=True), scale, window)
        assert torch.equal(out_THD[queries], whole[span])
