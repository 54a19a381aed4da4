"""Packed attention and its gradients against each sequence alone, plainly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonia.kernels.attention import dense_attention
from harmonia.kernels.packed_attention import packed_attention
from tests.unit.kernels.gradients import TOLERANCE, assert_close, gradients, kept

LENGTHS = st.lists(st.sampled_from((1, 1, 2, 5, 17, 63, 64, 65, 130, 260)), min_size=1, max_size=5).map(tuple)
HEADS = st.sampled_from(((1, 1), (3, 1), (9, 3), (4, 4), (8, 2)))
IMPLS = st.sampled_from(("eager", "native"))
KINDS = ["eager", "native"]


def plain(q_THD, k_TGD, v_TGD, lengths, scale, window):
    sequences = zip(*(x.split(lengths) for x in (q_THD, k_TGD, v_TGD)), strict=True)
    return torch.cat([dense_attention(*qkv, scale, window) for qkv in sequences])


def fused(function, heads, *rest):
    """Of the fused projection, whose slices are queries, keys and values."""
    sizes = heads[0], heads[1], heads[1]
    return lambda qkv_TXD: function(*qkv_TXD.split(sizes, dim=1), *rest)


@settings(max_examples=60)
@given(
    LENGTHS, HEADS, st.sampled_from((16, 64, 80, 128)), st.sampled_from((0, 0, 1, 7, 64, 65, 100)), IMPLS,
    st.integers(0, 1000),
)  # fmt: skip
def test_gradients(lengths, heads, size, window, impl, seed):
    torch.manual_seed(seed)
    qkv_TXD = torch.randn(sum(lengths), heads[0] + 2 * heads[1], size)
    ours = gradients(fused(packed_attention, heads, lengths, size**-0.5, window, impl), qkv_TXD)
    plainly = gradients(fused(plain, heads, lengths, size**-0.5, window), qkv_TXD)
    for actual, expected in zip(ours, plainly, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("impl", KINDS)
def test_long_sequences(impl):
    torch.manual_seed(0)
    qkv_TXD, lengths = torch.randn(900, 4, 16), (600, 300)
    ours = gradients(fused(packed_attention, (2, 1), lengths, 0.25, 270, impl), qkv_TXD)
    for actual, expected in zip(ours, gradients(fused(plain, (2, 1), lengths, 0.25, 270), qkv_TXD), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("impl", KINDS)
def test_a_sequence_gets_the_same_bits_in_any_pack(impl):
    torch.manual_seed(0)
    lengths, qkv_TXD = (90, 1, 130, 7), torch.randn(228, 15, 32)
    together = gradients(fused(packed_attention, (9, 3), lengths, 0.2, 0, impl), qkv_TXD)
    d_out_THD = torch.randn(together[0].shape, generator=torch.Generator().manual_seed(0))
    for length, *pieces in zip(lengths, *(x.split(lengths) for x in (qkv_TXD, d_out_THD, *together)), strict=True):
        alone_TXD, given_THD, out_THD, d_qkv_TXD = pieces
        alone_TXD.requires_grad_()
        alone_THD = fused(packed_attention, (9, 3), (length,), 0.2, 0, impl)(alone_TXD)
        assert torch.equal(alone_THD, out_THD)
        assert torch.equal(torch.autograd.grad(alone_THD, alone_TXD, given_THD)[0], d_qkv_TXD)


@pytest.mark.parametrize("impl", KINDS)
def test_nothing_crosses_from_one_sequence_to_another(impl):
    qkv_TXD = torch.randn(100, 4, 16)
    qkv_TXD[30:60] = torch.nan
    results = gradients(fused(packed_attention, (2, 1), (30, 30, 40), 0.25, 0, impl), qkv_TXD)
    for result in results:
        assert result[:30].isfinite().all() and result[60:].isfinite().all()


@pytest.mark.parametrize("impl", KINDS)
def test_extreme_scores_do_not_overflow(impl):
    torch.manual_seed(0)
    q_THD, k_TGD, v_TGD = torch.randn(90, 2, 16) * 1e4, torch.randn(90, 1, 16), torch.randn(90, 1, 16)
    ours = gradients(lambda *qkv: packed_attention(*qkv, (70, 20), 1.0, 0, impl), q_THD, k_TGD, v_TGD)
    assert all(result.isfinite().all() for result in ours)
    assert_close(ours[0], plain(q_THD, k_TGD, v_TGD, (70, 20), 1.0, 0), tolerance=1e-4)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_share_the_work(num_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    torch.manual_seed(0)
    lengths, qkv_TXD = (200, 1, 70, 300), torch.randn(571, 5, 64)
    ours = gradients(fused(packed_attention, (3, 1), lengths, 0.125, 0), qkv_TXD)
    for actual, expected in zip(ours, gradients(fused(plain, (3, 1), lengths, 0.125, 0), qkv_TXD), strict=True):
        assert_close(actual, expected)


def test_other_sizes_and_types_take_the_plain_version():
    for size, dtype in ((24, torch.float32), (16, torch.bfloat16)):
        qkv_TXD = torch.randn(9, 4, size, dtype=dtype, requires_grad=True)
        out_THD = fused(packed_attention, (2, 1), (4, 5), 0.25, 0)(qkv_TXD)
        out_THD.sum().backward()
        expected_THD = fused(plain, (2, 1), (4, 5), 0.25, 0)(qkv_TXD)
        assert_close(out_THD.float(), expected_THD.float(), tolerance=TOLERANCE if dtype is torch.float32 else 0.01)
        assert qkv_TXD.grad.dtype is dtype


def test_kept_is_the_same_in_every_version():
    q_THD, k_TGD, v_TGD = torch.randn(9, 4, 16), torch.randn(9, 2, 16), torch.randn(9, 2, 16)
    fp32 = torch.float32
    shapes = ((9, 4, 16), (9, 2, 16), (9, 2, 16), (9, 4, 16), (4, 9))
    for impl in KINDS:
        found = kept(lambda *qkv, i=impl: packed_attention(*qkv, (4, 5), 0.25, 0, i), q_THD, k_TGD, v_TGD)
        assert found == [(shape, fp32) for shape in shapes]
    on_meta = (x.to("meta") for x in (q_THD, k_TGD, v_TGD))
    found = kept(lambda *qkv: packed_attention(*qkv, (4, 5), 0.25, 0), *on_meta)
    assert found == [(shape, fp32) for shape in shapes]
