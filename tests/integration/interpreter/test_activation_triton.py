"""Gated activations: the GPU kernels, in Triton's interpreter, against the plain version."""

import os

import pytest
import torch

from harmonia.kernels.activation import gated_activation
from tests.unit.kernels.gradients import assert_close, gradients

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has these with a GPU")

ACTIVATIONS = ("silu", "gelu_tanh")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "size"), [(0, 16), (1, 1), (3, 100), (2, 1500)])
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_outputs_and_gradients(rows, size, activation, spread):
    torch.manual_seed(rows)
    gate_up_TF2 = torch.randn(rows, 2 * size) * spread
    ours = gradients(lambda x: gated_activation(x, activation, "triton"), gate_up_TF2)
    for actual, expected in zip(
        ours, gradients(lambda x: gated_activation(x, activation, "eager"), gate_up_TF2), strict=True
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_may_be_apart_and_have_any_leading_dimensions(activation):
    torch.manual_seed(0)
    x_TF, given = torch.randn(6, 96), torch.randn(32, 6)
    for run in (
        lambda x, impl: gated_activation(x[:, :64], activation, impl).T * given,
        lambda x, impl: gated_activation(x.view(2, 3, 96)[..., 32:], activation, impl),
    ):
        ours, plainly = (gradients(lambda x, r=run, i=impl: r(x, i), x_TF) for impl in ("triton", "eager"))
        for actual, expected in zip(ours, plainly, strict=True):
            assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity, as it should
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out_everything_stays_finite(activation):
    gates = [-1e30, -200.0, -90.0, -10.5, 0.0, 10.5, 90.0, 1e5, 1e30]
    gate_up_TF2 = torch.tensor([gates + [1.0] * len(gates)])
    ours, plainly = (
        gradients(lambda x, i=impl: gated_activation(x, activation, i), gate_up_TF2) for impl in ("triton", "eager")
    )
    torch.testing.assert_close(ours[0], plainly[0], rtol=1e-5, atol=1e-5)
    size = len(gates)
    assert ours[1].isfinite().all()
    torch.testing.assert_close(ours[1][:, size:], plainly[1][:, size:], rtol=1e-5, atol=1e-5)
    near = slice(1, size - 1)  # where the plain formula does not overflow
    torch.testing.assert_close(ours[1][:, near], plainly[1][:, near], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_precision(activation):
    leaf_TF2 = torch.randn(4, 40).bfloat16().requires_grad_()
    out_TF = gated_activation(leaf_TF2, activation, "triton")
    out_TF.sum().backward()
    assert out_TF.dtype is torch.bfloat16 and leaf_TF2.grad is not None and leaf_TF2.grad.dtype is torch.bfloat16
    assert_close(out_TF.float(), gated_activation(leaf_TF2.detach().float(), activation, "eager"), 0.01)
