"""Products in e4m3 on a GPU against fp64, with poisoned memory, and a model in fp8 that serves and trains."""

from __future__ import annotations

import msgspec
import pytest
import torch

from harmonia.kernels.fp8 import fp8_input_grad, fp8_linear, is_native
from harmonia.kernels.fp8_choices import choose, choose_invariant
from harmonia.kernels.fp8_weight import TOKEN_STEPS, WEIGHT_STEPS, Fp8Weight, Tile, dequantise, quantise
from harmonia.kernels.matmul import gated_matmul
from harmonia.kernels.matmul_choices import Choice
from tests.unit.engine.runtime import CONFIG, Bench, sample
from tests.unit.models.tiny import reference_model

fp8_triton = pytest.importorskip("harmonia.kernels.fp8_triton")
fp8_round_triton = pytest.importorskip("harmonia.kernels.fp8_round_triton")
CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with e4m3"
    ),
    pytest.mark.timeout(600),
]
SIZES = ((1536, 1024), (256, 384), (200, 1000), (130, 70), (1024, 3072))
NUM_TOKENS = (0, 1, 2, 16, 17, 64, 65, 300)
SIDES = (0, 128)
NEAR = 2.0**-7
"""What bf16 rounds, and a little of the order of sums."""


def made(num_out: int, num_in: int, side: int, *, invariant: bool = False) -> Fp8Weight:
    torch.manual_seed(0)
    weight = Fp8Weight.empty(num_out, num_in, CUDA, side=side, invariant=invariant)
    weight.fill(0, torch.randn(num_out, num_in, device=CUDA, dtype=torch.bfloat16))
    return weight


def dense(weight: Fp8Weight) -> torch.Tensor:
    return weight.rows(torch.arange(len(weight.weight_NK), device=CUDA)).double()


def tokens(num_tokens: int, num_in: int) -> torch.Tensor:
    """Rows of a wider tensor, of very different sizes."""
    sizes_T1 = 10.0 ** torch.linspace(-3, 3, max(1, num_tokens), device=CUDA)[:num_tokens, None]
    return (torch.randn(num_tokens, 2 * num_in, device=CUDA) * sizes_T1).bfloat16()[:, :num_in]


def expected(x_TK: torch.Tensor, weight: Fp8Weight) -> torch.Tensor:
    """With the scales that the kernel takes: others may be as good, and give another product."""
    values_TK, scale_TB = fp8_round_triton.quantise_tokens(x_TK, weight.tile.columns, TOKEN_STEPS)
    rounded_TK = dequantise(values_TK, scale_TB, weight.token_tile)
    return rounded_TK.double() @ dense(weight).T


def poison() -> None:
    """Memory that kernels get from the allocator holds NaN."""
    torch.cuda.synchronize()
    junk = [torch.full((size,), torch.nan, device=CUDA) for size in (1 << 12, 1 << 18, 1 << 22)]
    del junk


def assert_near(actual: torch.Tensor, wanted: torch.Tensor, *, near: float = NEAR) -> None:
    """Each row by its own size."""
    assert actual.shape == wanted.shape and bool(actual.isfinite().all())
    if wanted.numel():
        error_T = (actual.double() - wanted).abs().amax(dim=1)
        assert bool((error_T <= near * wanted.abs().amax(dim=1)).all())


@pytest.mark.parametrize("columns", [70, 128, 1000])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_tokens_are_quantised_as_on_a_cpu(columns: int, num_tokens: int) -> None:
    x_TK = tokens(num_tokens, 1000)
    if num_tokens:
        x_TK[-1] = 0
    poison()
    values_TK, scale_TB = fp8_round_triton.quantise_tokens(x_TK, columns, 1)
    wanted_TK, wanted_TB = quantise(x_TK.cpu(), Tile(1, columns))
    assert torch.equal(scale_TB.cpu(), wanted_TB)
    assert torch.equal(values_TK.cpu().float(), wanted_TK.float())


@pytest.mark.parametrize("size", [(1, 8), (300, 4096), (5, 12288), (33, 70)])
def test_rows_are_fitted_as_on_a_cpu(size: tuple[int, int]) -> None:
    """The same errors; between scales that are as good either may be taken."""
    torch.manual_seed(1)
    w_MK = (torch.randn(size, device=CUDA) ** 3).bfloat16()
    poison()
    weight = Fp8Weight.empty(*size, CUDA)
    weight.fill(0, w_MK)
    tile = Tile(1, size[1])
    wanted = dequantise(*quantise(w_MK.cpu(), tile, WEIGHT_STEPS), tile).to(CUDA).double()
    ours = dense(weight)
    errors = [(values - w_MK.double()).pow(4).sum(dim=1) for values in (ours, wanted)]
    assert torch.allclose(*errors, rtol=1e-3)
    assert float((ours == wanted).all(dim=1).float().mean()) > 0.9


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_products(size: tuple[int, int], num_tokens: int, side: int) -> None:
    assert is_native(torch.empty(1, device=CUDA))
    weight, x_TK = made(*size, side), tokens(num_tokens, size[1])
    bias_N = torch.randn(size[0], device=CUDA).bfloat16()
    poison()
    assert_near(fp8_linear(x_TK, weight), expected(x_TK, weight))
    assert_near(fp8_linear(x_TK, weight, bias_N), expected(x_TK, weight) + bias_N.double(), near=2 * NEAR)
    tile = weight.token_tile
    eager_TK = dequantise(*quantise(x_TK, tile, TOKEN_STEPS), tile)
    assert_near(fp8_linear(x_TK, weight, impl="eager"), eager_TK.double() @ dense(weight).T)


CHOICES = [
    *(Choice(16, 64, 256, parts, 4, 4, swap=True, spread=spread) for parts in (1, 3) for spread in (True, False)),
    *(Choice(block_t, 64, 128, 2, 3, 4, swap=True) for block_t in (16, 32, 64, 128)),
    *(Choice(block_t, block_n, 128, 1, 3, 4) for block_t in (64, 128) for block_n in (32, 128)),
    Choice(16, 16, 256, 1, 3, 4, swap=True),
    Choice(16, 32, 128, 2, 3, 4),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice)))
@pytest.mark.parametrize("side", SIDES)
def test_every_kernel_agrees(choice: Choice, side: int) -> None:
    if side and choice.block_k != side:
        pytest.skip("a step of the sum has one scale")
    for size in SIZES:
        weight, x_TK = made(*size, side), tokens(50, size[1])
        poison()
        values = fp8_round_triton.quantise_tokens(x_TK, weight.tile.columns, TOKEN_STEPS)
        for _ in range(2):  # the second time with counters that the first one left
            y_TN = fp8_triton.product(*values, weight, None, choice, dtype=torch.bfloat16)
            assert_near(y_TN, expected(x_TK, weight))


@pytest.mark.parametrize("size", SIZES)
def test_few_tokens_without_tensor_cores(size: tuple[int, int]) -> None:
    weight, x_TK = made(*size, 0), tokens(3, size[1])
    poison()
    inputs = fp8_round_triton.quantise_tokens(x_TK, weight.tile.columns, TOKEN_STEPS)
    for block_n in (1, 8):
        choice = Choice(1, block_n, 512, 1, 3, 4)
        y_TN = fp8_triton.row_product(*inputs, weight, None, choice, dtype=torch.bfloat16)
        assert_near(y_TN, expected(x_TK, weight))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("num_tokens", [1, 64, 300])
def test_gate_and_up(num_tokens: int, side: int) -> None:
    weight = made(1024, 512, side)
    x_TK = torch.randn(num_tokens, 512, device=CUDA).bfloat16()
    gate_TF, up_TF = expected(x_TK, weight).chunk(2, dim=1)
    with torch.inference_mode():
        assert_near(gated_matmul(x_TK, weight, None, "silu"), torch.nn.functional.silu(gate_TF) * up_TF, near=4 * NEAR)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", [0, 1, 65])
def test_gradients(size: tuple[int, int], num_tokens: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, dy_TN = made(*size, side), torch.randn(num_tokens, size[0], device=CUDA).bfloat16()
    poison()
    wanted_TK = dy_TN.double() @ dense(weight)
    assert_near(fp8_input_grad(dy_TN, weight), wanted_TK)
    monkeypatch.setattr("harmonia.kernels.fp8.PART_BYTES", 1 << 16)
    assert_near(fp8_input_grad(dy_TN, weight), wanted_TK)
    assert_near(fp8_input_grad(dy_TN, weight, "eager"), wanted_TK)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_invariant_products_do_not_depend_on_the_batch(size: tuple[int, int], side: int) -> None:
    weight, x_TK = made(*size, side, invariant=True), tokens(1500, size[1])
    all_TN = fp8_linear(x_TK, weight)
    assert_near(all_TN, expected(x_TK, weight))
    for start, count in ((0, 1), (7, 1), (3, 16), (100, 17), (5, 33), (64, 64), (11, 100), (200, 129), (0, 700)):
        assert torch.equal(fp8_linear(x_TK[start : start + count], weight), all_TN[start : start + count])


def test_graphs_repeat_what_was_captured() -> None:
    weight, x_TK = made(1536, 1024, 0), torch.zeros(4, 1024, device=CUDA, dtype=torch.bfloat16)
    fp8_linear(x_TK, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_TN = fp8_linear(x_TK, weight)
    for seed in range(3):
        torch.manual_seed(seed)
        x_TK.copy_(torch.randn(4, 1024, device=CUDA))
        graph.replay()
        assert torch.equal(y_TN, fp8_linear(x_TK, weight))


def test_choices_differ_by_tokens_only_where_they_may() -> None:
    assert choose(300, 1024, 1024, squares=False) is None
    assert choose(300, 1024, 1024, squares=True) is not None
    assert len({choose_invariant(count, 4096, 4096).parts for count in (1, 16, 100, 5000)}) == 1


# ------------------------------------------------------------------------------------------ through the runtime

FP8 = msgspec.structs.replace(CONFIG, device="cuda", precision="fp8")
TEXT = list(range(1, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    reference_model("llama").save_pretrained(folder)
    return str(folder)


def test_an_adapter_learns_and_what_learned_answers(model: str) -> None:
    bench = Bench(FP8)
    bench.spawn("base", model)
    bench.spawn("pupil", model, rank=4)
    before = bench.generate("base", TEXT[:5])
    for _ in range(12):
        bench.train("pupil", [sample(TEXT)])
        bench.optim_step("pupil", lr=2e-2)
    assert bench.generate("pupil", TEXT[:5]) == TEXT[5:11]
    assert bench.generate("base", TEXT[:5]) == before


@pytest.mark.parametrize("invariant", [False, True])
def test_what_trains_is_what_serves(model: str, invariant: bool) -> None:
    bench = Bench(msgspec.structs.replace(FP8, invariant=invariant))
    bench.spawn("pupil", model, rank=4)
    bench.train("pupil", [sample(TEXT)])
    bench.optim_step("pupil", lr=1e-2)
    seq_id = bench.begin("pupil", TEXT[:5], 8, logprobs=0)
    bench.drain()
    answer = bench.tokens(seq_id)
    decoded = [float(str(score.logprob)) for output in bench.outputs[seq_id] for score in output.scores]
    scored = bench.score("pupil", TEXT[:5] + answer, first=4)
    bench.train("pupil", [sample(TEXT[:5] + answer, [0.0] * 5 + [1.0] * 8)])
    loss = bench.optim_step("pupil", lr=0.0)["metrics"]["loss"]
    near = 0.0 if invariant else 0.2
    assert decoded == pytest.approx(scored.tolist(), abs=near, rel=0)
    assert loss == pytest.approx(-float(scored.sum()), abs=1e-3 if invariant else 0.5)


def test_the_cpu_sees_the_same_model(model: str) -> None:
    """Logits of tiny random models magnify what bf16 rounds; a layer that is wrong would differ by whole numbers."""
    scores = []
    for device in ("cpu", "cuda"):
        bench = Bench(msgspec.structs.replace(FP8, device=device))
        bench.spawn("base", model)
        scores.append(torch.tensor(bench.score("base", TEXT)))
    assert float((scores[0] - scores[1]).abs().mean()) < 0.3
