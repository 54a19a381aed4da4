"""Grouped low-rank products on a GPU: against the eager ones at real sizes, in captured graphs, and bit for bit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from harmonia.kernels.lora import (
    LoraBatch,
    LoraSegment,
    PlacedLora,
    adapter_grads,
    add_adapters,
    lora_leaves,
    lora_terms,
)
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.linear import Linear, WeightFormat

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

LINEARS = {
    "qkv": (1024, {"q_proj": 2048, "k_proj": 1024, "v_proj": 1024}),
    "down": (3072, {"down_proj": 1024}),
    "ragged": (200, {"gate_proj": 136, "up_proj": 72}),
}
RANKS = ((16, 0), (8, 0), (1, 1), (20, 0), (64, 1))
"""(rank, first part that is changed) of each adapter."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)


def bank_of(name: str, dtype: torch.dtype, ranks=RANKS) -> tuple[AdapterBank, list[PlacedLora], list[int]]:
    num_in, sizes = LINEARS[name]
    fmt = WeightFormat(dtype, torch.device("cuda"))
    linear = Linear.create(num_in, sizes, fmt)
    bank = AdapterBank([BankTarget(part, linear, part) for part in sizes], max_adapters=8, num_rows=160, fmt=fmt)
    for part in linear.lora.values():
        part.a_RK.fill_(torch.nan)
        part.b_RN.fill_(torch.nan)
    slots = []
    for number, (rank, first) in enumerate(ranks):
        targets = dict.fromkeys(list(sizes)[min(first, len(sizes) - 1) :], (rank, 0.5))
        slots.append(bank.create(str(number), targets))
        fill(bank, slots[-1])
    return bank, linear._placed(), slots


def fill(bank: AdapterBank, slot: int) -> None:
    for leaves in bank.leaves(slot).values():
        with torch.no_grad():
            leaves.a_rK.normal_(std=leaves.a_rK.shape[1] ** -0.5)
            leaves.b_rN.normal_()
    bank.drop_leaves(slot)


def spans_of(num_tokens: int, num_slots: int) -> list[tuple[int, int, int]]:
    """Pieces for every slot in turn, with gaps without an adapter."""
    bounds = torch.linspace(0, num_tokens, min(num_tokens, 2 * num_slots + 3) + 1).long().tolist()
    pieces = enumerate(pairwise(bounds))
    return [(start, stop, index % (num_slots + 1)) for index, (start, stop) in pieces if start < stop]


def batch_of(num_tokens: int, slots: list[int]) -> LoraBatch:
    spans = spans_of(num_tokens, len(slots))
    return LoraBatch(tuple(LoraSegment(start, stop, slots[i]) for start, stop, i in spans if i < len(slots)))


def added(placed: list[PlacedLora], batch: LoraBatch, x_TK: Tensor, impl: str, *, invariant: bool = False) -> Tensor:
    """What is added to zeros, in rows that lie apart."""
    num_out = sum(size for _, size, _ in placed)
    wide_TN = torch.full((len(x_TK), num_out + 24), torch.nan, dtype=x_TK.dtype, device="cuda")
    y_TN = wide_TN[:, 8 : 8 + num_out]
    y_TN.zero_()
    add_adapters(y_TN, x_TK, placed, batch, impl, invariant=invariant)
    assert wide_TN[:, :8].isnan().all()
    assert wide_TN[:, 8 + num_out :].isnan().all()
    return y_TN


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    if not found.numel():
        return
    error = (found.float() - expected.float()).abs().max()
    assert error <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max())), float(error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 17, 64, 100, 256, 300, 5000])
def test_mixed_adapters(name, dtype, num_tokens):
    _, placed, slots = bank_of(name, dtype)
    x_TK = torch.randn(num_tokens, 2 * LINEARS[name][0], dtype=dtype, device="cuda")[:, : LINEARS[name][0]]
    batch = batch_of(num_tokens, slots)
    for invariant in (False, True):
        found = added(placed, batch, x_TK, "triton", invariant=invariant)
        assert_close(found, added(placed, batch, x_TK, "eager"), dtype)
        again = added(placed, batch, x_TK, "triton", invariant=invariant)
        assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("ranks", [RANKS[:3], RANKS], ids=["to 16", "to 64"])
def test_few_tokens_of_the_same_bits_wherever_they_stand(name, dtype, ranks):
    """Unordered, so that programs take several tiles; each token alone, and among others."""
    _, placed, slots = bank_of(name, dtype, ranks)
    x_TK = torch.randn(64, LINEARS[name][0], dtype=dtype, device="cuda")
    segments = tuple(LoraSegment(row, row + 1, slots[row * 7 % len(slots)]) for row in range(64) if row % 9)
    together = added(placed, LoraBatch(segments), x_TK, "triton")
    assert_close(together, added(placed, LoraBatch(segments), x_TK, "eager"), dtype)
    for segment in segments[::5]:
        alone = added(placed, LoraBatch((LoraSegment(0, 1, segment.slot),)), x_TK[segment.start :][:1], "triton")
        assert torch.equal(alone[0], together[segment.start])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LINEARS)
def test_invariant_sums_are_the_same_bits_in_any_batch(name, dtype):
    _, placed, slots = bank_of(name, dtype)
    x_TK = torch.randn(3000, LINEARS[name][0], dtype=dtype, device="cuda")
    batch = batch_of(3000, slots)
    together = added(placed, batch, x_TK, "triton", invariant=True)
    for segment in batch.segments:
        for start in (segment.start, segment.start + 1, segment.stop - 1):
            for stop in {start + 1, min(start + 77, segment.stop), segment.stop}:
                part = LoraBatch((LoraSegment(0, stop - start, segment.slot),))
                alone = added(placed, part, x_TK[start:stop], "triton", invariant=True)
                assert torch.equal(alone, together[start:stop])


@pytest.mark.parametrize("num_tokens", [1, 8, 64, 256])
def test_a_captured_graph_serves_other_adapters(num_tokens):
    """Slots change in place, adapters are loaded and leave: the graph stays."""
    bank, placed, slots = bank_of("qkv", torch.bfloat16, RANKS[:3])
    slots_T = torch.full((num_tokens,), -1, dtype=torch.int32, device="cuda")
    x_TK = torch.randn(num_tokens, 1024, dtype=torch.bfloat16, device="cuda")
    y_TN = torch.zeros(num_tokens, 4096, dtype=torch.bfloat16, device="cuda")

    def step() -> None:
        y_TN.zero_()
        batch = LoraBatch((), slots_T)
        for _ in range(3):  # as linear layers follow each other
            add_adapters(y_TN, x_TK, placed, batch)

    step()
    generation, graph = bank.generation, torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for turn in range(6):
        if turn == 3:
            bank.unload(slots[1])
            slots[1] = bank.create("next", {"k_proj": (5, 2.0), "v_proj": (16, 1.0)})
            fill(bank, slots[1])
        chosen = torch.randint(-1, len(slots), (num_tokens,)).tolist()
        chosen = [-1 if choice < 0 else slots[choice] for choice in chosen]
        slots_T.copy_(torch.tensor(chosen, dtype=torch.int32))
        x_TK.normal_()
        graph.replay()
        segments = tuple(LoraSegment(row, row + 1, slot) for row, slot in enumerate(chosen) if slot >= 0)
        expected = torch.zeros(num_tokens, 4096, device="cuda", dtype=torch.float32)
        for start, size, part in placed:
            for segment in segments:
                rows = part.rows_of_slot[segment.slot]
                used = slice(rows.offset, rows.offset + rows.rank)
                low = x_TK[segment.start].float() @ part.a_RK[used].float().T * rows.scale
                expected[segment.start, start : start + size] = 3 * low @ part.b_RN[used].float()
        assert_close(y_TN, expected, torch.bfloat16)
    assert bank.generation == generation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("num_tokens", [1, 40, 1300])
@pytest.mark.parametrize("trained", [(), (0, 3, 4)], ids=str)
def test_gradients(name, dtype, num_tokens, trained):
    bank, placed, slots = bank_of(name, dtype)
    for index in trained:
        bank.leaves(slots[index])
    num_in, sizes = LINEARS[name]
    x_TK = torch.randn(num_tokens, num_in, dtype=dtype, device="cuda")
    dy_TN = torch.randn(num_tokens, sum(sizes.values()), dtype=dtype, device="cuda") * num_tokens**-0.5
    batch = batch_of(num_tokens, slots)
    results = []
    for impl in ("triton", "triton", "eager"):
        dx_TK = torch.ones_like(x_TK)
        terms = lora_terms(placed, batch.segments)
        leaves = lora_leaves(terms)
        grads = adapter_grads(x_TK if leaves else None, dy_TN, dx_TK, placed, batch, terms, impl, fast=False)
        sums: dict[int, Tensor] = {}
        for leaf, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                assert grad.dtype is torch.float32
                sums[id(leaf)] = sums[id(leaf)] + grad if id(leaf) in sums else grad
        results.append((dx_TK, sums))
    (dx_TK, sums), (again_TK, same), (expected_TK, expected) = results
    assert_close(dx_TK, expected_TK, dtype)
    assert torch.equal(dx_TK, again_TK)
    assert sums.keys() == expected.keys()
    for key, grad in sums.items():
        assert torch.equal(grad, same[key])
        assert_close(grad, expected[key], dtype)
