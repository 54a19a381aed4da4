"""Products of few tokens: the GPU kernels, in Triton's interpreter, against the plain product in fp64."""

import os

import pytest
import torch
from torch.nn import functional as F

from harmonia.kernels import matmul_choices
from harmonia.kernels.activation import gated_activation
from harmonia.kernels.matmul import DenseWeight, gated_matmul, matmul
from harmonia.kernels.matmul_choices import Choice

product = pytest.importorskip("harmonia.kernels.matmul_triton").product
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has these with a GPU")

ROW = Choice(1, 4, 128, 1, 2, 4)
TILE = Choice(16, 16, 64, 1, 3, 4)
KERNELS = {
    "row": ROW,
    "tile": TILE,
    "swapped": TILE._replace(block_n=32, swap=True),
    "spread": TILE._replace(parts=3),
    "swapped spread": TILE._replace(parts=3, swap=True),
    "in turns": TILE._replace(parts=3, spread=False),
    "swapped in turns": TILE._replace(parts=3, swap=True, spread=False),
}
SIZES = [(1, 32, 48), (3, 40, 256), (17, 34, 130), (34, 18, 300)]


def made(num_tokens: int, num_out: int, num_in: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(num_tokens)
    return [torch.randn(*shape).to(dtype) for shape in ((num_tokens, num_in), (num_out, num_in), (num_out,))]


def exact(x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    y_TN = x_TK.double() @ weight_NK.double().T
    return y_TN if bias_N is None else y_TN + bias_N.double()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.double(), expected, atol=tolerance * 30, rtol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_kernel_gives_the_product(kernel, sizes):
    x_TK, weight_NK, bias_N = made(*sizes)
    x_TK = x_TK[:3] if kernel == "row" else x_TK  # each token is a row of programs by itself
    for bias in (None, bias_N):
        assert_near(product(x_TK, weight_NK, bias, KERNELS[kernel]), exact(x_TK, weight_NK, bias))


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_is_summed_in_fp32_and_rounded_once(kernel):
    x_TK, weight_NK, bias_N = made(3, 40, 256, torch.float16)
    expected = exact(x_TK, weight_NK, bias_N)
    assert_near(product(x_TK, weight_NK, bias_N, KERNELS[kernel], out_dtype=torch.float32), expected)
    rounded = product(x_TK, weight_NK, bias_N, KERNELS[kernel])
    assert rounded.dtype is torch.float16
    assert_near(rounded, expected, 1e-3)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gate_is_applied_to_unrounded_sums(kernel, activation):
    x_TK, weight_NK, bias_N = made(3, 36, 130)
    gate_TF, up_TF = (exact(x_TK, weight_NK, bias_N) / 16).chunk(2, dim=1)
    gated_TF = F.silu(gate_TF) if activation == "silu" else F.gelu(gate_TF, approximate="tanh")
    actual = product(x_TK / 16, weight_NK, bias_N / 16, KERNELS[kernel], gate=activation)
    assert_near(actual, gated_TF * up_TF, 1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_may_be_slices(kernel):
    x_TK, weight_NK, _ = made(5, 20, 70)
    wide_TX, tall_NX = torch.full((5, 200), torch.nan), torch.full((20, 100), torch.nan)
    wide_TX[:, 30:100], tall_NX[:, 10:80] = x_TK, weight_NK
    expected = exact(x_TK, weight_NK)
    assert_near(product(wide_TX[:, 30:100], tall_NX[:, 10:80], None, KERNELS[kernel]), expected)
    assert_near(product(x_TK.T.contiguous().T, weight_NK, None, KERNELS[kernel]), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_tokens_and_one_output_feature(kernel):
    x_TK, weight_NK, _ = made(4, 1, 64)
    assert product(x_TK[:0], weight_NK, None, KERNELS[kernel]).shape == (0, 1)
    assert_near(product(x_TK, weight_NK, None, KERNELS[kernel]), exact(x_TK, weight_NK))


def test_parts_that_are_spread_add_up_as_those_taken_in_turns():
    x_TK, weight_NK, bias_N = made(5, 40, 512)
    spread = product(x_TK, weight_NK, bias_N, KERNELS["spread"])
    assert torch.equal(spread, product(x_TK, weight_NK, bias_N, KERNELS["in turns"]))
    assert torch.equal(spread, product(x_TK, weight_NK, bias_N, KERNELS["spread"])), "counters are left at zero"


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 33])
def test_a_product_takes_the_kernel_by_itself(num_tokens, invariant):
    x_TK, weight_NK, bias_N = made(num_tokens, 70, 600)
    weight = DenseWeight(weight_NK, invariant=invariant)
    assert_near(matmul(x_TK, weight, bias_N, "triton"), exact(x_TK, weight_NK, bias_N))


def test_an_invariant_product_has_the_same_bits_in_any_batch():
    x_TK, weight_NK, bias_N = made(40, 70, 600)
    weight = DenseWeight(weight_NK, invariant=True)
    together = matmul(x_TK, weight, bias_N, "triton")
    for count in (1, 9, 37):  # from the first on: here a tile is a product of numpy, which places are not equal to
        assert torch.equal(matmul(x_TK[:count], weight, bias_N, "triton"), together[:count])


def test_the_gated_product_is_the_product_gated():
    x_TK, weight_NK, bias_N = made(3, 36, 130)
    weight, expected = DenseWeight(weight_NK), gated_activation(exact(x_TK, weight_NK, bias_N).float(), "silu", "eager")
    with torch.inference_mode():
        for impl in ("auto", "eager", "triton"):
            torch.testing.assert_close(gated_matmul(x_TK, weight, bias_N, "silu", impl), expected, atol=1e-3, rtol=1e-4)
    x_TK.requires_grad_()
    assert gated_matmul(x_TK, weight, bias_N, "silu", "eager").requires_grad


def test_logits_of_a_bf16_model_are_not_rounded(monkeypatch):
    monkeypatch.setattr("harmonia.kernels.matmul._WIDENED_BYTES", 4 * 64 * 20)
    x_TK, weight_NK, bias_N = made(3, 70, 64, torch.bfloat16)
    x_TK.requires_grad_()
    y_TN = matmul(x_TK, DenseWeight(weight_NK), bias_N, out_dtype=torch.float32)
    assert y_TN.dtype is torch.float32
    assert_near(y_TN.detach(), exact(x_TK.detach(), weight_NK, bias_N))
    y_TN.sum().backward()
    assert x_TK.grad.dtype is torch.bfloat16
    assert_near(x_TK.grad, weight_NK.double().sum(0).expand(3, 64), 0.02)


def test_choices_are_tiles_that_compile():
    for (num_out, num_in), by_tokens in matmul_choices._table().items():
        for num_tokens, choice in by_tokens.items():
            assert matmul_choices.fastest(num_tokens, num_in, num_out) == choice
            assert all(size & (size - 1) == 0 for size in choice[:3] if isinstance(size, int))
            assert choice.block_t < 16 or choice.block_n >= 16
            assert not choice.swap or choice.block_n >= 64


@pytest.mark.parametrize("sizes", [(4096, 4096), (1024, 3072), (12288, 1024), (4096, 151936), (64, 100)])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_order_of_invariant_sums_depends_on_the_weight_only(sizes, itemsize):
    choices = [matmul_choices.invariant(num_tokens, *sizes, itemsize) for num_tokens in (1, 16, 17, 64, 65, 500, 9000)]
    assert len({choice.parts for choice in choices}) == 1
    assert all(choice.block_k <= 128 for choice in choices), "parts begin at multiples of 128"
    assert itemsize == 2 or len({choice[:3] for choice in choices}) == 1


def test_other_sizes_have_a_rule():
    assert matmul_choices.fastest(1, 896, 1152).block_t == 1
    assert matmul_choices.fastest(20, 896, 128256).swap
    assert matmul_choices.fastest(20, 896, 1152) is None
    assert matmul_choices.fastest(500, 4096, 4096) is None
