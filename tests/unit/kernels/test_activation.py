"""Gradients of gated activations against those of the plain formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from harmonia.kernels.activation import gated_activation
from tests.unit.kernels.gradients import assert_close, gradients, kept

ACTIVATIONS = ("silu", "gelu_tanh")


def plain(gate_up_TF2, activation):
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    return (F.silu(gate_TF) if activation == "silu" else F.gelu(gate_TF, approximate="tanh")) * up_TF


@given(
    st.sampled_from((0, 1, 3, 70, 300)), st.sampled_from((1, 16, 100, 1536)), st.sampled_from(ACTIVATIONS),
    st.sampled_from(("eager", "native")), st.sampled_from((1.0, 10.0)), st.integers(0, 1000),
)  # fmt: skip
def test_gradients(rows, size, activation, impl, spread, seed):
    torch.manual_seed(seed)
    gate_up_TF2 = torch.randn(rows, 2 * size) * spread
    ours = gradients(lambda x: gated_activation(x, activation, impl), gate_up_TF2)
    plainly = gradients(lambda x: plain(x, activation), gate_up_TF2)
    for actual, expected in zip(ours, plainly, strict=True):
        assert_close(actual, expected, least=0.1)  # torch's own is off by 1e-7 where it should be next to nothing


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_slices(activation):
    x, given = torch.randn(6, 96), torch.randn(32, 6)
    ours = gradients(lambda x: gated_activation(x[:, :64], activation).T * given, x)
    assert_close(ours[1], gradients(lambda x: plain(x[:, :64], activation).T * given, x)[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gates_far_out_have_finite_gradients(activation):
    gates = torch.tensor([-1e30, -200.0, -90.0, -11.0, 11.0, 90.0, 1e5, 1e30])
    x = torch.cat((gates, torch.ones(8))).requires_grad_()
    gated_activation(x[None], activation).sum().backward()
    on_gate, on_up = x.grad.chunk(2)
    torch.testing.assert_close(on_gate, (gates > 0).float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(on_up, gates.clamp(min=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_precision_gradients_keep_their_type(activation):
    x = torch.randn(5, 64).bfloat16().requires_grad_()
    gated_activation(x, activation).sum().backward()
    expected = gradients(lambda x: plain(x, activation).sum(), x.detach().float())
    assert x.grad.dtype is torch.bfloat16 and expected[1].shape == x.shape


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_the_input_is_kept(activation):
    x = torch.randn(5, 64)
    for impl in ("eager", "native"):
        assert kept(lambda x, i=impl: gated_activation(x, activation, i), x) == [((5, 64), torch.float32)]
    assert kept(lambda x: gated_activation(x, activation), x.to("meta")) == [((5, 64), torch.float32)]
