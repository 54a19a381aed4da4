"""Paged attention: the compiled version against the plain one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonia.kernels.attention import paged_attention, write_cache
from harmonia.kernels.pages import LayerCache, PagedLayout
from tests.unit.kernels.pages import cache_of, layout_of, poison_unused

LENS = st.lists(
    st.tuples(st.sampled_from((1, 1, 1, 2, 5, 17, 65, 130)), st.sampled_from((0, 0, 1, 15, 16, 63, 64, 100, 200))),
    min_size=1,
    max_size=4,
)
HEADS = st.sampled_from(((1, 1), (3, 1), (9, 3), (4, 4), (14, 2), (16, 1)))


@settings(max_examples=60)
@given(
    LENS, HEADS, st.sampled_from((16, 32, 64, 80, 128, 256)), st.sampled_from((4, 16, 20)),
    st.sampled_from((0, 0, 1, 7, 16, 64, 100)), st.integers(0, 1000),
)  # fmt: skip
def test_agrees_with_the_plain_version(lens, heads, size, block_size, window, seed):
    torch.manual_seed(seed)
    layout, num_blocks = layout_of(lens, block_size)
    cache = cache_of(num_blocks, block_size, heads[1], size)
    q_THD = torch.randn(len(layout.slots_T), heads[0], size)
    expected = paged_attention(q_THD, cache, layout, size**-0.5, window, impl="eager")
    poison_unused(cache, layout, block_size)
    actual = paged_attention(q_THD, cache, layout, size**-0.5, window, impl="native")
    assert (actual - expected).abs().max() <= 1e-5


def test_a_sequence_gets_the_same_bits_in_any_batch():
    torch.manual_seed(0)
    layout, num_blocks = layout_of([(1, 90), (1, 30), (70, 5), (1, 0)], 16)
    cache, q_THD = cache_of(num_blocks, 16, 3, 64), torch.randn(73, 9, 64)
    together = paged_attention(q_THD, cache, layout, 0.125, 0, impl="native")
    starts = [0, 1, 2, 72, 73]
    for row in range(4):
        alone = PagedLayout(
            slots_T=layout.slots_T[starts[row] : starts[row + 1]],
            blocks_B=layout.blocks_B,
            block_starts_S=layout.block_starts_S[row : row + 1],
            context_lens_S=layout.context_lens_S[row : row + 1],
            query_starts_S1=torch.tensor([0, starts[row + 1] - starts[row]], dtype=torch.int32),
            query_lens=layout.query_lens[row : row + 1],
            context_lens=layout.context_lens[row : row + 1],
            num_decodes=0,
        )
        queries = slice(starts[row], starts[row + 1])
        out_THD = paged_attention(q_THD[queries], cache, alone, 0.125, 0, impl="native")
        assert torch.equal(out_THD, together[queries])


def test_queries_may_be_slices_of_the_fused_projection():
    torch.manual_seed(0)
    layout, num_blocks = layout_of([(1, 40), (3, 4)], 16)
    cache, qkv_TXD = cache_of(num_blocks, 16, 2, 32), torch.randn(4, 8, 32)
    q_THD, k_TGD, v_TGD = qkv_TXD.split((4, 2, 2), dim=1)
    write_cache(k_TGD, v_TGD, cache, layout.slots_T)
    expected = paged_attention(q_THD, cache, layout, 0.2, 0, impl="eager")
    assert torch.allclose(paged_attention(q_THD, cache, layout, 0.2, 0), expected, atol=1e-5)


def test_extreme_scores_do_not_overflow():
    layout, num_blocks = layout_of([(1, 70), (20, 70)], 16)
    cache = cache_of(num_blocks, 16, 1, 16)
    q_THD = 1e4 * torch.randn(21, 2, 16)
    expected = paged_attention(q_THD, cache, layout, 1.0, 0, impl="eager")
    assert torch.allclose(paged_attention(q_THD, cache, layout, 1.0, 0), expected, atol=1e-4)


def test_keys_and_values_land_in_their_slots():
    written, plain = cache_of(5, 4, 2, 16), cache_of(5, 4, 2, 16)
    plain.k_NPGD.copy_(written.k_NPGD)
    plain.v_NPGD.copy_(written.v_NPGD)
    qkv_TXD, slots_T = torch.randn(3, 6, 16), torch.tensor([7, 0, 19])
    write_cache(qkv_TXD[:, 2:4], qkv_TXD[:, 4:], written, slots_T, impl="native")
    write_cache(qkv_TXD[:, 2:4], qkv_TXD[:, 4:], plain, slots_T, impl="eager")
    assert torch.equal(written.k_NPGD, plain.k_NPGD) and torch.equal(written.v_NPGD, plain.v_NPGD)


def test_other_types_take_the_plain_version():
    layout, num_blocks = layout_of([(2, 3)], 4)
    cache = LayerCache(*torch.randn(2, num_blocks, 4, 1, 16, dtype=torch.bfloat16))
    assert paged_attention(torch.randn(2, 2, 16).bfloat16(), cache, layout, 0.25, 0).dtype is torch.bfloat16
