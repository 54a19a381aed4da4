"""Gradients of rotary embeddings against those of the plain formula."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.kernels.rope import apply_rope
from tests.unit.kernels.gradients import assert_close, gradients, kept


def plain(x_THD, table_CD, positions_T):
    cos_TD, sin_TD = table_CD[positions_T][:, None].chunk(2, dim=-1)
    left, right = x_THD.chunk(2, dim=-1)
    return torch.cat((left * cos_TD - right * sin_TD, right * cos_TD + left * sin_TD), dim=-1)


@given(
    st.sampled_from((0, 1, 3, 70, 300)), st.sampled_from((1, 5, 12)), st.sampled_from((2, 16, 64, 80, 128)),
    st.sampled_from(("eager", "native")), st.integers(0, 1000),
)  # fmt: skip
def test_gradients_of_a_slice_of_the_projection(tokens, heads, size, impl, seed):
    torch.manual_seed(seed)
    qkv_TXD, table_CD = torch.randn(tokens, heads + 2, size), torch.randn(50, size)
    positions_T = torch.randint(0, 50, (tokens,))
    ours = gradients(lambda x: apply_rope(x[:, :heads], table_CD, positions_T, impl), qkv_TXD)
    plainly = gradients(lambda x: plain(x[:, :heads], table_CD, positions_T), qkv_TXD)
    for actual, expected in zip(ours, plainly, strict=True):
        assert_close(actual, expected)


def test_a_gradient_may_be_strided():
    x_THD, table_CD, positions_T = torch.randn(6, 4, 32), torch.randn(50, 32), torch.arange(6)
    ours = gradients(lambda x: apply_rope(x, table_CD, positions_T).permute(2, 0, 1), x_THD)
    assert_close(ours[1], gradients(lambda x: plain(x, table_CD, positions_T).permute(2, 0, 1), x_THD)[1])


def test_half_precision_gradients_keep_their_type():
    x_THD, table_CD = torch.randn(6, 4, 32).bfloat16().requires_grad_(), torch.randn(50, 32)
    apply_rope(x_THD, table_CD, torch.arange(6)).sum().backward()
    assert x_THD.grad is not None and x_THD.grad.dtype is torch.bfloat16


def test_only_positions_and_their_table_are_kept():
    x_THD, table_CD, positions_T = torch.randn(6, 4, 32), torch.randn(50, 32), torch.arange(6)
    expected = [((50, 32), torch.float32), ((6,), torch.int64)]
    for impl in ("eager", "native"):
        assert kept(lambda x, i=impl: apply_rope(x, table_CD, positions_T, i), x_THD) == expected
    on_meta = kept(lambda x: apply_rope(x, table_CD.to("meta"), positions_T.to("meta")), x_THD.to("meta"))
    assert on_meta == expected
