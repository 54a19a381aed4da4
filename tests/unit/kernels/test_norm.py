"""Gradients of the norms against those of the plain formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.kernels.norm import add_rms_norm, rms_norm
from tests.unit.kernels.gradients import assert_close, gradients, kept

EPS = 1e-6
IMPLS = st.sampled_from(("eager", "native"))


def plain(x_TE, weight_E):
    return x_TE * torch.rsqrt(x_TE.square().mean(-1, keepdim=True) + EPS) * weight_E


def plain_add(x_TE, residual_TE, weight_E):
    return plain(x_TE + residual_TE, weight_E), x_TE + residual_TE


@given(st.sampled_from((0, 1, 3, 70, 300)), st.sampled_from((7, 16, 100, 576)), IMPLS, st.integers(0, 1000))
def test_gradients_of_both_outputs_meet(rows, size, impl, seed):
    torch.manual_seed(seed)
    inputs = torch.randn(rows, size) * 3, torch.randn(rows, size), torch.randn(size)
    ours = gradients(lambda x, residual, weight: add_rms_norm(x, residual, weight, EPS, impl), *inputs)
    for actual, expected in zip(ours, gradients(plain_add, *inputs), strict=True):
        assert_close(actual, expected)


@given(st.sampled_from((1, 3, 70)), st.sampled_from((1, 4)), st.sampled_from((16, 33, 128)), IMPLS)
def test_norm_of_heads_in_a_slice(tokens, heads, size, impl):
    qkv_TXD, weight_D = torch.randn(tokens, heads + 2, size), torch.randn(size)
    ours = gradients(lambda x, weight: rms_norm(x[:, 1:-1], weight, EPS, impl), qkv_TXD, weight_D)
    for actual, expected in zip(ours, gradients(lambda x, w: plain(x[:, 1:-1], w), qkv_TXD, weight_D), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("impl", ["eager", "native"])
@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_outputs_may_be_unused(impl, used):
    torch.manual_seed(0)
    x_TE, residual_TE, weight_E = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32)
    ours = gradients(lambda x, residual: add_rms_norm(x, residual, weight_E, EPS, impl)[used], x_TE, residual_TE)
    for actual, expected in zip(
        ours, gradients(lambda x, residual: plain_add(x, residual, weight_E)[used], x_TE, residual_TE), strict=True
    ):
        assert_close(actual, expected)


def test_a_gradient_may_be_strided():
    x_TE, weight_E = torch.randn(6, 32), torch.randn(32)
    ours = gradients(lambda x: rms_norm(x, weight_E, EPS).T, x_TE)
    assert_close(ours[1], gradients(lambda x: plain(x, weight_E).T, x_TE)[1])


def test_a_weight_alone_may_train():
    x_TE, weight_E = torch.randn(9, 32), torch.randn(32)
    ours = gradients(lambda weight: rms_norm(x_TE, weight, EPS), weight_E)
    assert_close(ours[1], gradients(lambda weight: plain(x_TE, weight), weight_E)[1])


def test_gradients_of_half_precision_weights_are_summed_in_full_precision():
    x_TE = torch.randn(300, 32).bfloat16()
    weight_E = torch.ones(32, dtype=torch.bfloat16, requires_grad=True)
    weight_E.grad_dtype = torch.float32
    weight_E.grad = torch.zeros(32)
    rms_norm(x_TE, weight_E, EPS).sum().backward()
    assert_close(weight_E.grad, plain(x_TE.float(), torch.ones(32)).sum(0))


def test_half_precision_inputs_get_gradients_of_their_type():
    x_TE, weight_E = torch.randn(7, 32).bfloat16().requires_grad_(), torch.randn(32).bfloat16()
    d_out_TE = torch.randn(7, 32).bfloat16()
    (d_x_TE,) = torch.autograd.grad(rms_norm(x_TE, weight_E, EPS), x_TE, d_out_TE)
    x32_TE = x_TE.detach().float().requires_grad_()
    (expected_TE,) = torch.autograd.grad(plain(x32_TE, weight_E.float()), x32_TE, d_out_TE.float())
    assert d_x_TE.dtype is torch.bfloat16
    assert_close(d_x_TE.float(), expected_TE, tolerance=0.01)


def test_only_the_sum_and_the_weight_are_kept():
    x_TE, residual_TE, weight_E = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32)
    expected = [((5, 32), torch.float32), ((32,), torch.float32)]
    for impl in ("eager", "native"):
        assert kept(lambda *a, i=impl: add_rms_norm(*a, EPS, i), x_TE, residual_TE, weight_E) == expected
    on_meta = (tensor.to("meta") for tensor in (x_TE, residual_TE, weight_E))
    assert kept(lambda *a: add_rms_norm(*a, EPS), *on_meta) == expected
