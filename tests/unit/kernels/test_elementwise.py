"""Norms, activations and rotary embeddings: the compiled versions against the plain ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.kernels.activation import gated_activation
from harmonia.kernels.norm import add_rms_norm, rms_norm
from harmonia.kernels.rope import apply_rope

ROWS = st.sampled_from((0, 1, 3, 70, 300))


@given(ROWS, st.sampled_from((1, 16, 100, 576)), st.integers(0, 1000))
def test_norms(rows, size, seed):
    torch.manual_seed(seed)
    x_TE, residual_TE, weight_E = torch.randn(rows, size) * 3, torch.randn(rows, size), torch.randn(size)
    torch.testing.assert_close(rms_norm(x_TE, weight_E, 1e-6), rms_norm(x_TE, weight_E, 1e-6, impl="eager"))
    actual = add_rms_norm(x_TE, residual_TE, weight_E, 1e-6)
    torch.testing.assert_close(actual, add_rms_norm(x_TE, residual_TE, weight_E, 1e-6, impl="eager"))


def test_norm_of_heads_in_a_slice():
    heads_THD, weight_D = torch.randn(4, 6, 32)[:, 1:5], torch.randn(32)
    torch.testing.assert_close(rms_norm(heads_THD, weight_D, 1e-6), rms_norm(heads_THD, weight_D, 1e-6, impl="eager"))


@given(ROWS, st.sampled_from((1, 16, 100, 1536)), st.sampled_from(("silu", "gelu_tanh")), st.integers(0, 1000))
def test_gated_activations(rows, size, activation, seed):
    torch.manual_seed(seed)
    gate_up_TF2 = torch.randn(rows, 2 * size) * 10
    expected = gated_activation(gate_up_TF2, activation, impl="eager")
    torch.testing.assert_close(gated_activation(gate_up_TF2, activation), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_far_out_stay_finite(activation):
    gate_up_TF2 = torch.tensor([[-1e30, -200.0, -90.0, 90.0, 1e5, 1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = gated_activation(gate_up_TF2, activation, impl="eager")
    torch.testing.assert_close(gated_activation(gate_up_TF2, activation), expected, rtol=1e-5, atol=1e-5)


@given(ROWS, st.sampled_from((1, 5, 12)), st.sampled_from((2, 16, 64, 80, 256)), st.integers(0, 1000))
def test_rope(tokens, heads, size, seed):
    torch.manual_seed(seed)
    x_THD = torch.randn(tokens, heads + 2, size)[:, :heads]
    table_CD, positions_T = torch.randn(50, size), torch.randint(0, 50, (tokens,))
    actual = apply_rope(x_THD, table_CD, positions_T)
    torch.testing.assert_close(actual, apply_rope(x_THD, table_CD, positions_T, impl="eager"), rtol=1e-5, atol=1e-5)


def test_gradients_take_the_plain_versions():
    x = torch.randn(2, 64, requires_grad=True)
    rms_norm(x, torch.ones(64), 1e-6).sum().backward()
    gated_activation(x, "silu").sum().backward()
    apply_rope(x.view(2, 2, 32), torch.randn(4, 32), torch.tensor([1, 3])).sum().backward()
    assert x.grad is not None


def test_other_types_take_the_plain_versions():
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-6).dtype is torch.bfloat16
    assert gated_activation(x, "silu").dtype is torch.bfloat16
