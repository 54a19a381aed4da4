"""Products with adapters under gradients against the plainest way to write them."""

import pytest
import torch
from torch.nn import functional as F

from harmonia.kernels.lora import LoraBatch, LoraLeaves, LoraPart, LoraRows, LoraSegment, PlacedLora
from harmonia.kernels.matmul import DenseWeight, adapted_matmul

NUM_IN = 40
SIZES = (64, 24, 40)
SLOTS = (LoraRows(0, 3, 0.5), LoraRows(3, 8, 2.0), LoraRows(11, 1, -1.0))
RAGGED = (LoraSegment(0, 1, 0), LoraSegment(1, 30, 1), LoraSegment(32, 32, 0), LoraSegment(33, 40, 2))
AGAIN = (LoraSegment(0, 9, 1), LoraSegment(9, 12, 0), LoraSegment(12, 40, 1))
NUM_TOKENS = 40


def arena(size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoraPart:
    a_RK, b_RN = torch.randn(12, NUM_IN).to(dtype), torch.randn(12, size).to(dtype)
    return LoraPart(a_RK.to(device), b_RN.to(device), list(SLOTS))


def train(part: LoraPart, slot: int) -> None:
    rows = part.rows_of_slot[slot]
    used = slice(rows.offset, rows.offset + rows.rank)
    a_rK, b_rN = (arena[used].detach().requires_grad_() for arena in (part.a_RK, part.b_RN))
    a_rK.grad_dtype = b_rN.grad_dtype = torch.float32
    part.leaves[slot] = LoraLeaves(a_rK, b_rN, rows.scale)


def side_by_side(parts: list[LoraPart | None]) -> list[PlacedLora]:
    starts = [sum(SIZES[:index]) for index in range(len(SIZES))]
    found = zip(starts, SIZES, parts, strict=True)
    return [PlacedLora(start, size, part) for start, size, part in found if part is not None]


def plain(x_TK, weight_NK, bias_N, placed, segments):
    """The same with torch's operations: output, and the leaves by (part, slot)."""
    y_TN, leaves = F.linear(x_TK, weight_NK, bias_N), {}
    for number, (start, size, part) in enumerate(placed):
        for segment in segments:
            rows = part.rows_of_slot[segment.slot]
            key, used = (number, segment.slot), slice(rows.offset, rows.offset + rows.rank)
            if key not in leaves:
                leaves[key] = [arena[used].float().clone().requires_grad_() for arena in (part.a_RK, part.b_RN)]
            a_rK, b_rN = leaves[key]
            change = rows.scale * (x_TK[segment.start : segment.stop] @ a_rK.T) @ b_rN
            columns = start, y_TN.shape[1] - start - size
            y_TN = y_TN + F.pad(change, (*columns, segment.start, len(y_TN) - segment.stop))
    return y_TN, leaves


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).detach().abs().max() <= tolerance * max(1e-3, float(expected.detach().abs().max()))


@pytest.mark.parametrize("segments", [RAGGED, AGAIN], ids=["ragged", "one adapter twice"])
@pytest.mark.parametrize("trained", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("absent", [None, 1])
@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_adapters_in_training_beside_frozen_ones(segments, trained, absent, impl):
    torch.manual_seed(0)
    parts = [None if index == absent else arena(size) for index, size in enumerate(SIZES)]
    for part in parts:
        for slot in trained if part is not None else ():
            train(part, slot)
    placed, weight_NK = side_by_side(parts), torch.randn(sum(SIZES), NUM_IN)
    x, bias_N, dy = torch.randn(NUM_TOKENS, NUM_IN), torch.randn(sum(SIZES)), torch.randn(NUM_TOKENS, sum(SIZES))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_TN = adapted_matmul(ours, DenseWeight(weight_NK.clone()), bias_N, placed, LoraBatch(segments), impl)
    expected, leaves = plain(theirs, weight_NK, bias_N, placed, segments)
    assert_close(y_TN, expected)
    y_TN.backward(dy)
    expected.backward(dy)
    assert_close(ours.grad, theirs.grad)
    for (number, slot), (a_rK, b_rN) in leaves.items():
        if slot in trained and any(segment.slot == slot and segment.start < segment.stop for segment in segments):
            found = placed[number].part.leaves[slot]
            assert_close(found.a_rK.grad, a_rK.grad)
            assert_close(found.b_rN.grad, b_rN.grad)


def test_the_first_layer_needs_no_gradient_of_its_input():
    part = arena(64)
    train(part, 1)
    x_TK = torch.randn(30, NUM_IN)
    y_TN = adapted_matmul(
        x_TK, DenseWeight(torch.randn(64, NUM_IN)), None, [PlacedLora(0, 64, part)], LoraBatch(RAGGED[:2])
    )
    y_TN.sum().backward()
    low = 2.0 * x_TK[1:] @ part.leaves[1].a_rK.detach().T
    assert_close(part.leaves[1].b_rN.grad, low.sum(0)[:, None].expand(8, 64))


def test_only_inputs_of_trained_adapters_are_kept():
    part, x_TK = arena(64), torch.randn(NUM_TOKENS, NUM_IN, requires_grad=True)
    weight, kept = DenseWeight(torch.randn(64, NUM_IN)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        adapted_matmul(x_TK, weight, None, [PlacedLora(0, 64, part)], LoraBatch(RAGGED))
        assert not kept
        train(part, 2)
        adapted_matmul(x_TK, weight, None, [PlacedLora(0, 64, part)], LoraBatch(RAGGED))
    assert [tensor.data_ptr() for tensor in kept] == [x_TK.data_ptr()]


def test_an_adapter_without_tokens_gets_no_gradient():
    part = arena(64)
    train(part, 0)
    x_TK = torch.randn(0, NUM_IN, requires_grad=True)
    weight, segment = DenseWeight(torch.randn(64, NUM_IN)), LoraSegment(0, 0, 0)
    adapted_matmul(x_TK, weight, None, [PlacedLora(0, 64, part)], LoraBatch((segment,))).sum().backward()
    assert part.leaves[0].a_rK.grad is None


def test_bf16_adapters_get_fp32_gradients():
    torch.manual_seed(0)
    part = arena(64, torch.bfloat16)
    train(part, 1)
    placed, weight = [PlacedLora(0, 64, part)], DenseWeight(torch.randn(64, NUM_IN).bfloat16())
    x_TK = torch.randn(NUM_TOKENS, NUM_IN).bfloat16()
    y_TN = adapted_matmul(x_TK, weight, None, placed, LoraBatch(AGAIN[:1]))
    y_TN.float().sum().backward()
    expected, leaves = plain(x_TK.float(), weight.weight_NK.float(), None, placed, AGAIN[:1])
    expected.sum().backward()
    found = part.leaves[1].a_rK.grad, part.leaves[1].b_rN.grad
    for grad, reference in zip(found, leaves[0, 1], strict=True):
        assert grad.dtype is torch.float32
        assert_close(grad, reference.grad, 2e-2)


def test_shapes_without_memory():
    part = arena(64, torch.bfloat16, "meta")
    train(part, 1)
    weight = DenseWeight(torch.empty(64, NUM_IN, dtype=torch.bfloat16, device="meta"))
    x_TK = torch.empty(NUM_TOKENS, NUM_IN, dtype=torch.bfloat16, device="meta", requires_grad=True)
    adapted_matmul(x_TK, weight, None, [PlacedLora(0, 64, part)], LoraBatch(RAGGED)).sum().backward()
    assert x_TK.grad.shape == x_TK.shape
    assert part.leaves[1].a_rK.grad.shape == (8, NUM_IN)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_adapters_on_a_gpu(dtype, tolerance):
    torch.manual_seed(0)
    parts = [arena(size, dtype, "cuda") for size in SIZES]
    for part in parts:
        train(part, 1)
    placed, weight_NK = side_by_side(parts), torch.randn(sum(SIZES), NUM_IN).to("cuda", dtype)
    x_TK, dy_TN = (
        torch.randn(NUM_TOKENS, NUM_IN).to("cuda", dtype),
        torch.randn(NUM_TOKENS, sum(SIZES)).to("cuda", dtype),
    )
    ours, theirs = x_TK.requires_grad_(), x_TK.detach().float().requires_grad_()
    adapted_matmul(ours, DenseWeight(weight_NK), None, placed, LoraBatch(AGAIN)).backward(dy_TN)
    expected, leaves = plain(theirs, weight_NK.float(), None, placed, AGAIN)
    expected.backward(dy_TN.float())
    assert_close(ours.grad.float(), theirs.grad, tolerance)
    for number, part in enumerate(parts):
        for found, reference in zip((part.leaves[1].a_rK, part.leaves[1].b_rN), leaves[number, 1], strict=True):
            assert found.grad.dtype is torch.float32
            assert_close(found.grad, reference.grad, tolerance)
