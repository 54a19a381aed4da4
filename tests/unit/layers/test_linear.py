"""Linear layers in training: what gets a gradient, and that training and serving read the same memory."""

import torch
from torch.nn import functional as F

from harmonia.kernels.lora import LoraBatch, LoraSegment
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.linear import Linear, WeightFormat

FP32 = WeightFormat(torch.float32, torch.device("cpu"))
SIZES = {"q_proj": 64, "k_proj": 24, "v_proj": 40}


def filled(*, bias: bool = False) -> Linear:
    torch.manual_seed(0)
    linear = Linear.create(48, SIZES, FP32, bias=bias)
    for parameter in linear.parameters(""):
        parameter.fill(0, torch.randn(parameter.shape))
    linear.pack()
    return linear


def test_biases_of_all_parts_are_one_storage_that_can_be_trained():
    linear, x_TK = filled(bias=True), torch.randn(5, 48)
    storages = {id(parameter.storage): parameter.storage for parameter in linear.parameters("")}
    assert sum(storage.num_bytes for storage in storages.values()) == linear.num_bytes + 4 * 128
    linear.bias.values.requires_grad_()
    linear(x_TK, None).sum().backward()
    assert linear.bias_N.grad.tolist() == [5.0] * 128


def test_serving_and_training_give_the_same():
    linear = filled(bias=True)
    bank = AdapterBank([BankTarget(name, linear, name) for name in SIZES], max_adapters=1, num_rows=4, fmt=FP32)
    slot = bank.create("a", {"q_proj": (4, 0.5), "v_proj": (2, 1.0)})
    for leaves in bank.leaves(slot).values():
        with torch.no_grad():
            leaves.a_rK.normal_()
            leaves.b_rN.normal_()
    x_TK, segments = torch.randn(7, 48), LoraBatch((LoraSegment(2, 6, slot),))
    with torch.inference_mode():
        served = linear(x_TK, segments)
    assert torch.equal(linear(x_TK.requires_grad_(), segments), served)
    assert not torch.equal(linear(x_TK, None), served)


def test_everything_can_be_trained_at_once():
    linear = filled(bias=True)
    bank = AdapterBank([BankTarget("k_proj", linear, "k_proj")], max_adapters=1, num_rows=4, fmt=FP32)
    slot = bank.create("a", {"k_proj": (4, 0.5)})
    leaves = bank.leaves(slot)["k_proj"]
    with torch.no_grad():
        leaves.a_rK.normal_()
        leaves.b_rN.normal_()
    weight_NK, x_TK = linear.weight.dense().clone().requires_grad_(), torch.randn(9, 48)
    leaf, (a_rK, b_rN) = linear.weight.require_grad(), (leaves.a_rK.detach(), leaves.b_rN.detach())
    linear.bias_N.requires_grad_()
    ours, theirs = x_TK.clone().requires_grad_(), x_TK.clone().requires_grad_()
    y_TN = linear(ours, LoraBatch((LoraSegment(0, 9, slot),)))
    change = 0.5 * (theirs @ a_rK.T) @ b_rN
    expected = F.linear(theirs, weight_NK, linear.bias_N.detach()) + F.pad(change, (64, 40))
    torch.testing.assert_close(y_TN, expected)
    y_TN.square().sum().backward()
    expected.square().sum().backward()
    found_NK = leaf.grad if linear.weight.panels_XKP is None else leaf.grad.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found_NK, weight_NK.grad, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-3)
    assert leaves.a_rK.grad is not None and linear.bias_N.grad is not None
