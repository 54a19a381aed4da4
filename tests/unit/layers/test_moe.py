"""Gradients through a mixture of experts against those of the plainest way to write it."""

import pytest
import torch
from torch.nn import functional as F

from harmonia.kernels.weight import DenseWeight
from harmonia.layers.linear import Linear, WeightFormat
from harmonia.layers.mlp import GatedMlp
from harmonia.layers.moe import SparseMoe
from tests.unit.kernels.gradients import assert_close, kept

FP32 = WeightFormat(torch.float32, torch.device("cpu"))
META = WeightFormat(torch.float32, torch.device("meta"))


def mixture(normalize: bool, fmt: WeightFormat = FP32) -> SparseMoe:
    router = Linear.create(16, {"gate": 6}, fmt)
    moe = SparseMoe(router, tuple(GatedMlp.create(16, 64, "silu", fmt) for _ in range(6)), 2, normalize)
    if fmt is FP32:
        torch.manual_seed(0)
        for parameter in moe.parameters(""):
            parameter.fill(0, torch.randn(parameter.shape) * 0.3)
    return moe


def weights(moe: SparseMoe) -> list[DenseWeight]:
    return [moe.router.weight, *(linear.weight for expert in moe.experts for linear in (expert.gate_up, expert.down))]


def rows(weight: DenseWeight) -> torch.Tensor:
    """The weight in rows, connected to its leaf if it has one."""
    if weight.leaf is None:
        return weight.dense()
    return weight.leaf if weight.panels_XKP is None else weight.leaf.transpose(1, 2).flatten(0, 1)


def plain(moe: SparseMoe, x_TE: torch.Tensor) -> torch.Tensor:
    router, *experts = (rows(weight) for weight in weights(moe))
    y = []
    for x_E in x_TE:
        weight_K, chosen_K = (router @ x_E).softmax(-1).topk(2)
        weight_K = weight_K / weight_K.sum() if moe.normalize else weight_K
        parts = []
        for weight, expert in zip(weight_K, chosen_K.tolist(), strict=True):
            gate, up = (experts[2 * expert] @ x_E).chunk(2)
            parts.append(weight * (experts[2 * expert + 1] @ (F.silu(gate) * up)))
        y.append(sum(parts))
    return torch.stack(y)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_gradients_of_inputs_with_frozen_experts(normalize, tokens):
    moe = mixture(normalize)
    x_TE, d_y_TE = torch.randn(2, tokens, 16)
    x_TE.requires_grad_()
    y_TE, expected_TE = moe(x_TE, None), plain(moe, x_TE)
    assert_close(y_TE, expected_TE)
    ours, plainly = (torch.autograd.grad(out_TE, x_TE, d_y_TE)[0] for out_TE in (y_TE, expected_TE))
    assert_close(ours, plainly)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_of_router_and_experts(normalize):
    moe = mixture(normalize)
    leaves = [weight.require_grad() for weight in weights(moe)]
    x_TE, d_y_TE = torch.randn(2, 40, 16)
    x_TE.requires_grad_()
    ours = torch.autograd.grad(moe(x_TE, None), [x_TE, *leaves], d_y_TE)
    plainly = torch.autograd.grad(plain(moe, x_TE), [x_TE, *leaves], d_y_TE)
    for actual, expected in zip(ours, plainly, strict=True):
        assert_close(actual, expected)


def test_experts_without_tokens_get_no_gradient():
    moe = mixture(normalize=True)
    leaves = [weight.require_grad() for weight in weights(moe)]
    found = torch.autograd.grad(moe(torch.randn(1, 16), None).sum(), leaves, allow_unused=True)
    assert sum(gradient is not None for gradient in found) == 1 + 2 * 2


def test_as_much_is_kept_without_data():
    x_TE = torch.randn(41, 16)
    counts = [
        sum(shape.numel() * dtype.itemsize for shape, dtype in kept(lambda x, moe=moe: moe(x, None), x))
        for moe, x in ((mixture(normalize=True), x_TE), (mixture(normalize=True, fmt=META), x_TE.to("meta")))
    ]
    assert counts[0] == counts[1]
