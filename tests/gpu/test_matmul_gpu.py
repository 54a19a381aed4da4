"""Products on a GPU: every kernel against fp64, whatever lay in the memory before, and the same bits in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels import matmul_choices
from harmonia.kernels.matmul import DenseWeight, gated_matmul, matmul
from harmonia.kernels.matmul_choices import Choice

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

CHOICES = sorted({choice for by_tokens in matmul_choices._table().values() for choice in by_tokens.values()})
SHAPES = [(6144, 4096), (4096, 4096), (4096, 12288), (4096, 1024), (1024, 2048), (1024, 3072)]  # N, K
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 5e-6}


def product(*args, **kwargs) -> Tensor:
    from harmonia.kernels import matmul_triton  # there is no Triton where there is no GPU

    return matmul_triton.product(*args, **kwargs)


def made(num_tokens: int, num_out: int, num_in: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    torch.manual_seed(num_tokens)
    return [
        torch.randn(*shape, device="cuda").to(dtype) for shape in ((num_tokens, num_in), (num_out, num_in), (num_out,))
    ]


def poison(num_bytes: int = 64 << 20) -> None:
    """Fill memory that the next tensors will get with NaN."""
    for size in (num_bytes, 8 << 20, 1 << 20, *[1 << 16] * 8):
        torch.full((size // 4,), torch.nan, device="cuda")


def assert_product(y_TN: Tensor, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, tolerance: float) -> None:
    expected = x_TK.double() @ weight_NK.double().T
    expected = expected if bias_N is None else expected + bias_N.double()
    assert y_TN.shape == expected.shape
    error = (y_TN.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert error <= tolerance, f"off by {float(error):.2g}"


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_kernel_of_the_table(choice):
    for num_tokens, num_out, num_in in (
        (1, 4096, 4096),
        (choice.block_t, 1024, 3072),
        (choice.block_t + 3, 2050, 1032),
    ):
        x_TK, weight_NK, bias_N = made(num_tokens, num_out, num_in)
        for out_dtype in (torch.bfloat16, torch.float32):
            poison()
            y_TN = product(x_TK, weight_NK, bias_N, choice, out_dtype=out_dtype)
            assert y_TN.dtype is out_dtype
            assert_product(y_TN, x_TK, weight_NK, bias_N, 1e-2 if out_dtype is torch.bfloat16 else 3e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "sizes", [(1, 7, 33), (5, 100, 200), (17, 576, 1537), (64, 1536, 576), (130, 64, 64), (0, 64, 64)]
)
@pytest.mark.parametrize("invariant", [False, True])
def test_sizes_and_types_without_a_measurement(sizes, dtype, invariant):
    x_TK, weight_NK, bias_N = made(*sizes, dtype)
    weight = DenseWeight(weight_NK, invariant=invariant)
    for impl in ("auto", "triton"):
        poison()
        y_TN = matmul(x_TK, weight, bias_N, impl)
        assert y_TN.dtype is dtype
        if sizes[0]:
            assert_product(y_TN, x_TK, weight_NK, bias_N, TOLERANCE[dtype])


def test_inputs_may_be_slices():
    x_TK, weight_NK, bias_N = made(20, 1000, 520)
    wide_TX = torch.full((20, 1100), torch.nan, device="cuda", dtype=torch.bfloat16)
    for start in (8, 3):  # 16 bytes, and not
        wide_TX[:, start : start + 520] = x_TK
        for choice in (Choice(16, 64, 128, 3, 4, 4, swap=True), Choice(1, 2, 512, 1, 2, 4)):
            y_TN = product(wide_TX[:, start : start + 520], weight_NK, bias_N, choice)
            assert_product(y_TN, x_TK, weight_NK, bias_N, 1e-2)


@pytest.mark.parametrize("num_tokens", [1, 7, 16, 40, 64, 200, 3000])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_chosen_gives_the_product_and_fp32_on_demand(shape, num_tokens):
    x_TK, weight_NK, bias_N = made(num_tokens, *shape)
    for invariant in (False, True):
        weight = DenseWeight(weight_NK, invariant=invariant)
        poison()
        assert_product(matmul(x_TK, weight, bias_N), x_TK, weight_NK, bias_N, 1e-2)
        poison()
        y_TN = matmul(x_TK, weight, out_dtype=torch.float32)
        assert y_TN.dtype is torch.float32
        assert_product(y_TN, x_TK, weight_NK, None, 3e-5)


@pytest.mark.parametrize("num_tokens", [1, 3, 16, 30, 64, 100])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_products(num_tokens, activation):
    x_TK, weight_NK, bias_N = made(num_tokens, 6144, 1024)
    weight_NK *= 0.03
    y_TN = x_TK.double() @ weight_NK.double().T + bias_N.double()
    gate_TF, up_TF = y_TN.chunk(2, dim=1)
    expected = (F.silu(gate_TF) if activation == "silu" else F.gelu(gate_TF, approximate="tanh")) * up_TF
    with torch.inference_mode():
        poison()
        actual = gated_matmul(x_TK, DenseWeight(weight_NK), bias_N, activation)
        torch.testing.assert_close(actual.double(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("shape", [*SHAPES, (6144, 1024), (50000, 1024)], ids=str)
def test_invariant_sums_have_the_same_bits_in_any_batch(shape):
    """Also with values of very different sizes, where another order of adding would show."""
    x_TK, weight_NK, _ = made(8192, *shape)
    x_TK *= torch.exp2(torch.randint(-12, 12, x_TK.shape, device="cuda"))
    weight = DenseWeight(weight_NK, invariant=True)
    for out_dtype in (torch.bfloat16, torch.float32):
        together = matmul(x_TK, weight, out_dtype=out_dtype)
        for first, count in (
            (0, 1),
            (8191, 1),
            (5, 8),
            (100, 16),
            (17, 17),
            (3, 33),
            (64, 64),
            (9, 65),
            (0, 128),
            (1, 300),
            (0, 4096),
        ):
            poison()
            some = matmul(x_TK[first : first + count], weight, out_dtype=out_dtype)
            assert torch.equal(some, together[first : first + count]), f"{count} tokens"


def test_invariant_sums_in_fp32():
    x_TK, weight_NK, bias_N = made(300, 576, 1536, torch.float32)
    weight = DenseWeight(weight_NK, invariant=True)
    together = matmul(x_TK, weight, bias_N)
    for first, count in ((0, 1), (299, 1), (3, 32), (7, 64), (1, 299)):
        assert torch.equal(matmul(x_TK[first : first + count], weight, bias_N), together[first : first + count])


@pytest.mark.parametrize("num_tokens", [1, 8, 64])
@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 3072), (4096, 12288)], ids=str)
def test_products_in_a_captured_graph(shape, num_tokens):
    x_TK, weight_NK, bias_N = made(num_tokens, *shape)
    weights = [DenseWeight(weight_NK, invariant=invariant) for invariant in (False, True)]
    for weight in weights:
        matmul(x_TK, weight, bias_N)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [matmul(x_TK, weight, bias_N) for weight in weights for _ in range(3)]
    for seed in range(3):
        torch.manual_seed(seed)
        x_TK.normal_()
        for y_TN in outputs:
            y_TN.fill_(torch.nan)
        graph.replay()
        for index, y_TN in enumerate(outputs):
            assert torch.equal(y_TN, matmul(x_TK, weights[index // 3], bias_N))


def test_products_on_two_streams_do_not_meet():
    x_TK, weight_NK, _ = made(8, 4096, 12288)
    choice = Choice(16, 32, 128, 6, 4, 4)
    expected, streams = product(x_TK, weight_NK, None, choice), [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(product(x_TK, weight_NK, None, choice))
    torch.cuda.synchronize()
    assert all(torch.equal(y_TN, expected) for y_TN in found)


def test_fp32_is_not_shortened_to_tf32():
    assert not torch.backends.cuda.matmul.allow_tf32
    x_TK, weight_NK, bias_N = made(700, 800, 900, torch.float32)
    assert_product(matmul(x_TK, DenseWeight(weight_NK), bias_N), x_TK, weight_NK, bias_N, 5e-6)
    assert_product(x_TK @ weight_NK.T, x_TK, weight_NK, None, 5e-6)
