"""The adapter bank: room, reading and writing, training in place, growing."""

import pytest
import torch

from harmonia.errors import AdapterLimitError, InvalidRequestError
from harmonia.kernels.lora import LoraBatch, LoraSegment
from harmonia.layers.adapters import AdapterBank, BankTarget, LoraMatrices
from harmonia.layers.linear import Linear, WeightFormat

FP32 = WeightFormat(torch.float32, torch.device("cpu"))
BF16 = WeightFormat(torch.bfloat16, torch.device("cpu"))
RANKS = {"q_proj": (4, 0.5), "k_proj": (2, 2.0)}


def bank_of(num_adapters: int = 3, num_rows: int = 16, fmt: WeightFormat = FP32) -> tuple[AdapterBank, Linear]:
    torch.manual_seed(0)
    linear = Linear.create(24, {"q_proj": 16, "k_proj": 8}, fmt)
    for parameter in linear.parameters(""):
        parameter.fill(0, torch.randn(parameter.shape))
    targets = [BankTarget(name, linear, name) for name in ("q_proj", "k_proj")]
    return AdapterBank(targets, max_adapters=num_adapters, num_rows=num_rows, fmt=fmt), linear


def matrices(rank: int = 4) -> dict[str, LoraMatrices]:
    return {
        "q_proj": LoraMatrices(torch.randn(rank, 24), torch.randn(16, rank), 0.5),
        "k_proj": LoraMatrices(torch.randn(2, 24), torch.randn(8, 2), 2.0),
    }


def assert_equal(found: dict[str, LoraMatrices], expected: dict[str, LoraMatrices]) -> None:
    assert found.keys() == expected.keys()
    for path, change in found.items():
        assert torch.equal(change.a_rK, expected[path].a_rK)
        assert torch.equal(change.b_Nr, expected[path].b_Nr)
        assert change.scale == expected[path].scale


def test_what_was_loaded_is_read_back():
    (bank, _), given = bank_of(), matrices()
    slot = bank.load("a", given)
    assert_equal(bank.read(slot), given)
    bank.read(slot)["q_proj"].a_rK.zero_()
    assert_equal(bank.read(slot), given)


def test_a_new_adapter_changes_nothing_even_on_used_rows():
    bank, linear = bank_of(num_adapters=1)
    bank.unload(bank.load("old", matrices()))
    slot, x_TK = bank.create("new", RANKS), torch.randn(5, 24)
    assert torch.equal(linear(x_TK, LoraBatch((LoraSegment(0, 5, slot),))), linear(x_TK, None))
    assert not bank.read(slot)["q_proj"].a_rK.any()


@pytest.mark.parametrize(
    ("targets", "error", "says"),
    [
        ({"q_proj": (17, 1.0)}, AdapterLimitError, "rank 17, and 12 of 16 rank rows are free"),
        ({"o_proj": (1, 1.0)}, InvalidRequestError, "'o_proj', which this model does not have"),
        ({"q_proj": (0, 1.0)}, InvalidRequestError, "rank 0"),
        ({}, InvalidRequestError, "no matrix"),
    ],
)
def test_what_cannot_be_created_leaves_the_bank_as_it_was(targets, error, says):
    bank, _ = bank_of()
    bank.create("first", RANKS)
    with pytest.raises(error, match=says):
        bank.create("second", targets)
    assert [bank.create("third", RANKS), bank.create("fourth", RANKS)] == [1, 2]
    with pytest.raises(AdapterLimitError, match="limit of 3 adapters"):
        bank.create("fifth", RANKS)


def test_wrong_shapes_are_refused_before_anything_changes():
    (bank, _), wrong = bank_of(), matrices()
    wrong["k_proj"] = LoraMatrices(torch.randn(2, 23), torch.randn(8, 2), 1.0)
    with pytest.raises(InvalidRequestError, match="'k_proj' have shapes"):
        bank.load("a", wrong)
    assert bank.load("b", matrices()) == 0


def test_a_copy_is_a_snapshot():
    (bank, _), given = bank_of(), matrices()
    source = bank.load("a", given)
    copy = bank.copy_slot(source, "a before")
    bank.leaves(source)["q_proj"].a_rK.data.zero_()
    assert_equal(bank.read(copy), given)
    assert not bank.read(source)["q_proj"].a_rK.any()


def test_writing_in_place():
    (bank, _), given = bank_of(), matrices()
    slot = bank.create("a", RANKS)
    leaves = bank.leaves(slot)
    bank.write(slot, given)
    assert_equal(bank.read(slot), given)
    assert torch.equal(leaves["k_proj"].a_rK, given["k_proj"].a_rK)


@pytest.mark.parametrize("path", ["o_proj", "k_proj", "q_proj"])
def test_what_does_not_fit_the_slot_is_not_written(path):
    bank, _ = bank_of()
    slot, given = bank.create("a", RANKS), matrices()
    given[path] = {
        "o_proj": given["q_proj"],
        "k_proj": LoraMatrices(torch.randn(3, 24), torch.randn(8, 3), 2.0),
        "q_proj": LoraMatrices(torch.randn(4, 24), torch.randn(16, 4), 3.0),
    }[path]
    with pytest.raises(InvalidRequestError, match=path):
        bank.write(slot, given)
    assert not bank.read(slot)["q_proj"].a_rK.any()


def test_leaves_are_the_rows_that_serving_reads():
    (bank, linear), x_TK = bank_of(), torch.randn(5, 24)
    slot = bank.load("a", matrices())
    leaves, segments = bank.leaves(slot), LoraBatch((LoraSegment(1, 4, slot),))
    assert all(again is leaves[path] for path, again in bank.leaves(slot).items())
    linear(x_TK, segments).sum().backward()
    before = linear(x_TK, segments).detach()
    with torch.no_grad():
        leaves["k_proj"].b_rN.sub_(leaves["k_proj"].b_rN.grad)
    with torch.inference_mode():
        assert not torch.equal(linear(x_TK, segments), before)
    assert not torch.equal(bank.read(slot)["k_proj"].b_Nr, before)


def test_an_adapter_that_is_no_longer_trained_is_frozen():
    bank, linear = bank_of()
    slot = bank.load("a", matrices())
    bank.leaves(slot)
    assert linear(torch.randn(5, 24), LoraBatch((LoraSegment(0, 5, slot),))).requires_grad
    bank.drop_leaves(slot)
    assert not linear(torch.randn(5, 24), LoraBatch((LoraSegment(0, 5, slot),))).requires_grad
    bank.leaves(slot)
    bank.unload(slot)
    assert bank.create("b", RANKS) == slot
    assert not linear(torch.randn(5, 24), LoraBatch((LoraSegment(0, 5, slot),))).requires_grad


def test_growing_keeps_adapters_leaves_and_gradients():
    (bank, linear), given, x_TK = bank_of(1, 4), matrices(), torch.randn(5, 24)
    slot = bank.load("a", given)
    segments, leaves = LoraBatch((LoraSegment(0, 5, slot),)), bank.leaves(slot)
    buffer = torch.zeros(4, 24)
    leaves["q_proj"].a_rK.grad = buffer
    linear(x_TK, segments).sum().backward()
    first, pending = buffer.clone(), linear(x_TK, segments).sum()
    bank.grow(4, 32)
    assert (bank.max_adapters, bank.num_rows) == (4, 32)
    assert bank.num_bytes == 4 * 32 * (24 + 16 + 24 + 8)
    assert_equal(bank.read(slot), given)
    assert [bank.load(key, matrices(8)) for key in "bcd"] == [1, 2, 3]
    pending.backward()
    torch.testing.assert_close(buffer, 2 * first)
    linear(x_TK, segments).sum().backward()
    torch.testing.assert_close(buffer, 3 * first)
    with torch.no_grad():
        leaves["q_proj"].a_rK.zero_()
    assert bank.leaves(slot)["q_proj"] is leaves["q_proj"]
    assert not bank.read(slot)["q_proj"].a_rK.any()


def test_a_bank_without_room_grows_as_well():
    bank, linear = bank_of(0, 0)
    assert not linear.lora and bank.num_bytes == 0
    with pytest.raises(AdapterLimitError, match="limit of 0"):
        bank.create("a", RANKS)
    bank.grow(1, 4)
    assert bank.create("a", RANKS) == 0
    bank.grow(0, 0)
    assert (bank.max_adapters, bank.num_rows) == (1, 4)


def test_a_bank_made_for_serving_can_train():
    with torch.inference_mode():
        bank, linear = bank_of()
        slot = bank.load("a", matrices())
        leaves = bank.leaves(slot)
    linear(torch.randn(5, 24), LoraBatch((LoraSegment(0, 5, slot),))).sum().backward()
    assert leaves["q_proj"].b_rN.grad is not None


def test_bf16_leaves_take_fp32_gradients():
    bank, linear = bank_of(fmt=BF16)
    slot = bank.load("a", matrices())
    leaves = bank.leaves(slot)
    leaves["q_proj"].b_rN.grad = torch.zeros(4, 16)
    x_TK = torch.randn(5, 24).bfloat16()
    linear(x_TK, LoraBatch((LoraSegment(0, 5, slot),))).sum().backward()
    bank.grow(5, 40)
    linear(x_TK, LoraBatch((LoraSegment(0, 5, slot),))).sum().backward()
    assert leaves["q_proj"].b_rN.grad.dtype is leaves["q_proj"].a_rK.grad.dtype is torch.float32
