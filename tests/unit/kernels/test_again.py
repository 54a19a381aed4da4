"""Backward passes that compute inputs again: the same gradients, with less kept."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from harmonia.kernels.activation import gated_activation
from harmonia.kernels.again import keeping_less
from harmonia.kernels.matmul import DenseWeight, matmul
from harmonia.kernels.norm import add_rms_norm, rms_norm

TOKENS, SIZE, INNER = 7, 64, 128


def trained(num_out: int, num_in: int) -> DenseWeight:
    weight = DenseWeight.empty(num_out, num_in, torch.float32, torch.device("cpu"))
    weight.fill(0, torch.randn(num_out, num_in) * 0.2)
    weight.require_grad()
    return weight


@pytest.mark.parametrize("adds", [False, True])
def test_gradients_are_the_same_and_less_is_kept(adds: bool) -> None:
    results = []
    for is_lean in (False, True):
        torch.manual_seed(0)
        first, second = trained(2 * INNER, SIZE), trained(SIZE, INNER)
        norm_E = torch.randn(SIZE).requires_grad_()
        x_TE, residual_TE = (torch.randn(TOKENS, SIZE).requires_grad_() for _ in range(2))
        shapes: list[tuple[int, ...]] = []

        def note(tensor: torch.Tensor, shapes: list[tuple[int, ...]] = shapes) -> torch.Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor

        with keeping_less(is_lean), saved_tensors_hooks(note, lambda tensor: tensor):
            if adds:
                normed_TE, sum_TE = add_rms_norm(x_TE, residual_TE, norm_E, 1e-5)
            else:
                normed_TE, sum_TE = rms_norm(x_TE, norm_E, 1e-5), residual_TE
            y_TE = matmul(gated_activation(matmul(normed_TE, first), "silu"), second) + sum_TE
        y_TE.square().sum().backward()
        gradients = [x_TE.grad, residual_TE.grad, norm_E.grad, first.leaf.grad, second.leaf.grad]
        results.append((shapes, gradients))
    (shapes, gradients), (lean_shapes, lean_gradients) = results
    assert (TOKENS, INNER) in shapes
    assert (TOKENS, INNER) not in lean_shapes
    assert shapes.count((TOKENS, SIZE)) - lean_shapes.count((TOKENS, SIZE)) == 1
    for left, right in zip(gradients, lean_gradients, strict=True):
        assert torch.equal(left, right)


def test_only_what_runs_inside_keeps_less() -> None:
    weight, norm_E = trained(SIZE, SIZE), torch.ones(SIZE)
    x_TE = torch.randn(TOKENS, SIZE).requires_grad_()
    with keeping_less():
        pass
    assert matmul(rms_norm(x_TE, norm_E, 1e-5), weight).grad_fn.saved_tensors[0].shape == (TOKENS, SIZE)
    with keeping_less(), keeping_less(active=False):
        assert matmul(rms_norm(x_TE, norm_E, 1e-5), weight).grad_fn.saved_tensors[0] is not None
    with keeping_less():
        assert matmul(rms_norm(x_TE, norm_E, 1e-5), weight).grad_fn.saved_tensors[0] is None
        assert matmul(x_TE, weight).grad_fn.saved_tensors[0] is not None, "nobody can make a leaf again"
