"""Grouped low-rank products against the eager ones, in Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

from harmonia.kernels.lora import (
    LoraBatch,
    LoraRoutes,
    LoraSegment,
    PlacedLora,
    adapter_grads,
    add_adapters,
    lora_leaves,
    lora_terms,
)
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.linear import Linear, WeightFormat

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="with a GPU, tests/gpu/test_lora_gpu.py covers these kernels"
)

FMT = WeightFormat(torch.float32, torch.device("cpu"))
SIZES = {"q_proj": 40, "k_proj": 24, "v_proj": 70}
RANKS = (
    {"q_proj": (1, 0.5), "k_proj": (1, 0.5), "v_proj": (1, 0.5)},
    {"q_proj": (3, 2.0)},
    {"q_proj": (8, 1.0), "v_proj": (5, -1.5)},
    {"k_proj": (16, 0.25), "v_proj": (16, 0.25)},
    {"q_proj": (20, 1.0), "k_proj": (17, 0.5), "v_proj": (2, 3.0)},
)
MIXED = ((0, 1, 0), (1, 30, 1), (32, 33, 4), (33, 70, 3), (70, 70, 2), (75, 90, 2))


def bank_of(num_in: int = 72, ranks=RANKS, names=tuple(SIZES)) -> tuple[AdapterBank, list[PlacedLora], list[int]]:
    """A bank on one linear layer whose adapters are random; arenas are poisoned where no adapter has rows."""
    torch.manual_seed(0)
    linear = Linear.create(num_in, SIZES, FMT)
    bank = AdapterBank([BankTarget(name, linear, name) for name in names], max_adapters=8, num_rows=64, fmt=FMT)
    arena = linear.lora[names[0]].arena
    arena.a_PRK.fill_(torch.nan)
    arena.b.fill_(torch.nan)
    slots = []
    for number, targets in enumerate(ranks):
        slots.append(bank.create(f"a{number}", {path: found for path, found in targets.items() if path in names}))
        fill(bank, slots[-1])
    return bank, linear._placed(), slots


def fill(bank: AdapterBank, slot: int) -> None:
    for leaves in bank.leaves(slot).values():
        with torch.no_grad():
            leaves.a_rK.normal_()
            leaves.b_rN.normal_()
    bank.drop_leaves(slot)


def segments_of(spans) -> LoraBatch:
    return LoraBatch(tuple(LoraSegment(*span) for span in spans))


def added(placed, batch: LoraBatch, x_TK: torch.Tensor, impl: str, *, invariant: bool = False) -> torch.Tensor:
    """What the adapters of the batch make of an output of ones, in rows that lie apart."""
    y_TN = torch.ones(len(x_TK), sum(SIZES.values()) + 8)[:, :-8]
    add_adapters(y_TN, x_TK, placed, batch, impl, invariant=invariant)
    return y_TN


@pytest.mark.parametrize("spans", [MIXED, (), ((0, 90, 4),), ((0, 3, 1), (3, 6, 0), (6, 9, 1))], ids=str)
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("num_in", [72, 640])
def test_mixed_adapters_of_any_rank(spans, invariant, num_in):
    _, placed, _ = bank_of(num_in)
    x_TK, batch = torch.randn(90, num_in), segments_of(spans)
    found = added(placed, batch, x_TK, "triton", invariant=invariant)
    torch.testing.assert_close(found, added(placed, batch, x_TK, "eager"), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("num_tokens", [0, 1, 5])
def test_few_tokens(num_tokens):
    _, placed, slots = bank_of(ranks=RANKS[:2])
    batch, x_TK = segments_of(((0, num_tokens, slots[1]),)), torch.randn(num_tokens, 72)
    found = added(placed, batch, x_TK, "triton")
    torch.testing.assert_close(found, added(placed, batch, x_TK, "eager"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("num_in", [72, 560])
def test_tokens_beyond_those_of_one_launch(num_in):
    _, placed, slots = bank_of(num_in)
    batch, x_TK = segments_of(((0, 200, slots[2]), (210, 290, slots[4]))), torch.randn(300, num_in)
    found = added(placed, batch, x_TK, "triton")
    torch.testing.assert_close(found, added(placed, batch, x_TK, "eager"), rtol=1e-4, atol=2e-3)


def test_a_bank_that_leaves_out_a_part():
    _, placed, _ = bank_of(ranks=RANKS[2:], names=("q_proj", "v_proj"))
    batch, x_TK = segments_of(((0, 4, 0), (4, 9, 1), (9, 12, 2))), torch.randn(12, 72)
    found = added(placed, batch, x_TK, "triton")
    torch.testing.assert_close(found, added(placed, batch, x_TK, "eager"), rtol=1e-4, atol=1e-3)


def test_invariant_sums_are_the_same_bits_in_any_batch():
    """Chunks that are summed apart, in one program, and without neighbours; on the same rows of a tile, since the
    interpreter's products differ by row."""
    _, placed, _ = bank_of(560)
    x_TK, batch = torch.randn(128, 560), segments_of(MIXED)
    together = added(placed, batch, x_TK, "triton", invariant=True)
    spans = tuple((start + 128 * copy, stop + 128 * copy, slot) for copy in range(14) for start, stop, slot in MIXED)
    many = added(placed, segments_of(spans), x_TK.repeat(14, 1), "triton", invariant=True)
    assert torch.equal(many[-128:], together)
    for start, stop, slot in MIXED:
        alone = added(placed, segments_of(((start, stop, slot),)), x_TK, "triton", invariant=True)
        assert torch.equal(alone[start:stop], together[start:stop])


def test_tables_follow_loads_unloads_growth_and_copies():
    """As a captured graph sees it: slots of tokens in place, and every tile that the bank may have."""
    bank, placed, slots = bank_of(ranks=RANKS[:3])
    arena = placed[0].part.arena
    slots_T, x_TK = torch.full((24,), -1, dtype=torch.int32), torch.randn(24, 72)
    captured = LoraBatch((), slots_T)
    assert captured.routes(x_TK, arena.table).max_tiles >= 5

    def check(*used: int) -> None:
        slots_T.fill_(-1)
        spans = [(4 * index + 1, 4 * index + 4, slot) for index, slot in enumerate(used)]
        for start, stop, slot in spans:
            slots_T[start:stop] = slot
        replayed = LoraBatch((), slots_T)
        found, expected = (added(placed, b, x_TK, i) for b, i in ((replayed, "triton"), (segments_of(spans), "eager")))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)

    check(slots[2], slots[0], slots[1])
    generation, addresses = bank.generation, (arena.scales_PR.data_ptr(), arena.table.ranges_S2.data_ptr())
    bank.unload(slots[1])
    fill(bank, slot := bank.create("next", {"v_proj": (8, 0.5)}))
    copy = bank.copy_slot(slots[2], "copy")
    fill(bank, slots[2])
    check(slot, copy, slots[2], slots[0])
    assert bank.generation == generation
    assert addresses == (arena.scales_PR.data_ptr(), arena.table.ranges_S2.data_ptr())
    fill(bank, long := bank.create("long", RANKS[4]))
    assert bank.generation > generation
    generation = bank.generation
    bank.grow(9, 80)
    assert bank.generation > generation
    check(long, slots[0], copy, -1, slot)


def gradients(placed, batch: LoraBatch, x_TK, dy_TN, impl: str, *, enters: bool = True):
    """dx and the gradients of every leaf, those of one leaf added up."""
    dx_TK = torch.ones_like(x_TK) if enters else None
    terms = lora_terms(placed, batch.segments)
    leaves = lora_leaves(terms)
    grads = adapter_grads(x_TK if leaves else None, dy_TN, dx_TK, placed, batch, terms, impl, fast=False)
    assert len(grads) == len(leaves)
    sums: dict[int, torch.Tensor] = {}
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is not None:
            assert grad.shape == leaf.shape
            assert grad.dtype is torch.float32
            sums[id(leaf)] = sums.get(id(leaf), 0) + grad
    return dx_TK, sums


@pytest.mark.parametrize("spans", [MIXED, ((0, 600, 2),), ((0, 9, 4), (9, 20, 1), (20, 90, 4))], ids=str)
@pytest.mark.parametrize("trained", [(), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("enters", [False, True])
def test_gradients(spans, trained, enters):
    bank, placed, slots = bank_of()
    for slot in trained:
        bank.leaves(slots[slot])
    num_tokens = max(90, *(stop for _, stop, _ in spans))
    x_TK, dy_TN = torch.randn(num_tokens, 72), torch.randn(num_tokens, sum(SIZES.values()))
    batch = segments_of(spans)
    dx_TK, grads = gradients(placed, batch, x_TK, dy_TN, "triton", enters=enters)
    expected_dx_TK, expected = gradients(placed, batch, x_TK, dy_TN, "eager", enters=enters)
    if enters:
        torch.testing.assert_close(dx_TK, expected_dx_TK, rtol=1e-4, atol=2e-3)
    assert grads.keys() == expected.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(grad, expected[key], rtol=1e-4, atol=5e-3)


def test_no_tokens_have_no_gradients():
    bank, placed, slots = bank_of()
    bank.leaves(slots[0])
    batch = segments_of(((0, 0, slots[0]),))
    dx_TK, grads = gradients(placed, batch, torch.zeros(0, 72), torch.zeros(0, 134), "triton")
    assert dx_TK.shape == (0, 72)
    assert not grads


def test_the_list_of_tiles():
    _, placed, slots = bank_of()
    table = placed[0].part.arena.table
    slots_T = torch.tensor([slots[4], -1, slots[1], slots[4]], dtype=torch.int32)
    routes: LoraRoutes = LoraBatch((), slots_T).routes(torch.zeros(4, 72), table)
    count = int(routes.tiles_X4[0, 0])
    assert table.width == 32
    assert routes.tiles_X4[1 : count + 1].tolist() == [[slots[1], 1, 4, 0], [slots[4], 28, 48, 0]]


def test_the_tiles_of_few_tokens():
    """Neighbours with the same adapter, none across a multiple of 16 tokens; empty ones behind the last."""
    _, placed, slots = bank_of()
    table = placed[0].part.arena.table
    slots_T = torch.tensor([-1, *[slots[4]] * 20, slots[1], -1, slots[1], 7, *[slots[0]] * 2], dtype=torch.int32)
    runs = LoraBatch((), slots_T).runs(torch.zeros(len(slots_T), 72), table)
    tiles, empty = runs.tiles_T4[:5].tolist(), runs.tiles_T4[5:, 1]
    assert tiles == [[1, 15, 28, 20], [16, 5, 28, 20], [21, 1, 1, 3], [23, 1, 1, 3], [25, 2, 0, 1]]
    assert not empty.any()


def test_more_tiles_than_programs():
    _, placed, slots = bank_of()
    batch = segments_of((row, row + 1, slots[row % 2 * 4]) for row in range(40))
    x_TK = torch.randn(40, 72)
    assert batch.runs(x_TK, placed[0].part.arena.table).programs < 40
    found = added(placed, batch, x_TK, "triton")
    torch.testing.assert_close(found, added(placed, batch, x_TK, "eager"), rtol=1e-4, atol=2e-3)


def test_layers_that_no_adapter_changes_cost_nothing_until_one_does():
    linears = [Linear.create(32, {"o_proj": 24}, FMT) for _ in range(2)]
    bank = AdapterBank(
        [BankTarget(f"{index}", linear, "o_proj") for index, linear in enumerate(linears)],
        max_adapters=2,
        num_rows=16,
        fmt=FMT,
    )
    arenas = [linear.lora["o_proj"].arena for linear in linears]
    bank.create("first", {"0": (4, 1.0)})
    assert [arena.is_used for arena in arenas] == [True, False]
    generation = bank.generation
    bank.create("second", {"0": (4, 1.0)})
    assert bank.generation == generation
    bank.unload(1)
    bank.create("third", {"1": (4, 1.0)})
    assert [arena.is_used for arena in arenas] == [True, True]
    assert bank.generation > generation
