"""Weights and products in e4m3 against fp64, and the GPU's kernels, in Triton's interpreter, against the eager ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.errors import InvalidRequestError
from harmonia.kernels.fp8 import fp8_input_grad, fp8_linear
from harmonia.kernels.fp8_weight import (
    E4M3,
    LARGEST,
    TOKEN_STEPS,
    WEIGHT_STEPS,
    Fp8Weight,
    ScaledRows,
    Tile,
    dequantise,
    quantise,
)
from harmonia.kernels.matmul import matmul
from harmonia.kernels.matmul_choices import Choice

CPU = torch.device("cpu")
SIZES = ((64, 32), (48, 200), (13, 70), (130, 256), (256, 384))
SIDES = (0, 128)
STEP = 2.0**-4
"""Half the distance between neighbours in e4m3, of their size."""


def made(num_out: int, num_in: int, side: int = 0, *, starts: tuple[int, ...] = (), seed: int = 0) -> Fp8Weight:
    torch.manual_seed(seed)
    weight = Fp8Weight.empty(num_out, num_in, CPU, side=side, starts=starts)
    weight.fill(0, torch.randn(num_out, num_in))
    return weight


def dense(weight: Fp8Weight) -> torch.Tensor:
    return weight.rows(torch.arange(len(weight.weight_NK)))


def on_grid(num_tokens: int, num_in: int) -> torch.Tensor:
    """Activations that e4m3 holds exactly: the interpreter rounds others wrongly where a digit carries over."""
    x_TK = torch.randn(num_tokens, num_in).to(E4M3).float()
    x_TK[:, ::32] = LARGEST / 64
    return x_TK


def rounded(x_TK: torch.Tensor, tile: Tile, num_steps: int = TOKEN_STEPS) -> torch.Tensor:
    return dequantise(*quantise(x_TK, tile, num_steps), tile)


@pytest.mark.parametrize("tile", [Tile(1, 70), Tile(1, 32), Tile(16, 32), Tile(128, 128)])
def test_quantised_values_are_near(tile: Tile) -> None:
    torch.manual_seed(1)
    x_MK = torch.randn(40, 70) * 10.0 ** torch.randint(-3, 3, (40, 1))
    values_MK, scale_GB = quantise(x_MK, tile)
    assert values_MK.dtype is E4M3 and scale_GB.shape == tile.grid(40, 70)
    error = (dequantise(values_MK, scale_GB, tile) - x_MK).abs()
    largest = x_MK.abs().max() if tile.rows > 1 else x_MK.abs().amax(dim=1, keepdim=True)
    assert bool((error <= torch.maximum(STEP * x_MK.abs(), largest * 2.0**-10 / LARGEST)).all())


@pytest.mark.parametrize("tile", [Tile(1, 70), Tile(16, 32)])
def test_weights_take_the_scales_that_keep_the_large_ones(tile: Tile) -> None:
    torch.manual_seed(1)
    w_MK = torch.randn(40, 70) ** 3
    fitted, plain = rounded(w_MK, tile, WEIGHT_STEPS), rounded(w_MK, tile, 1)
    assert float((fitted - w_MK).pow(4).sum()) < 0.8 * float((plain - w_MK).pow(4).sum())
    values_MK, scale_GB = quantise(w_MK, tile, WEIGHT_STEPS)
    assert bool(values_MK.float().isfinite().all()) and bool(values_MK.float().abs().amax() <= LARGEST)
    ratio = scale_GB / quantise(w_MK, tile)[1]
    assert float(ratio.min()) >= 1 and float(ratio.max()) < 2


def test_zeros_stay_zeros_and_the_largest_is_exact() -> None:
    x_MK = torch.zeros(3, 32)
    x_MK[1, 5] = -7.3
    assert torch.allclose(rounded(x_MK, Tile(1, 32)), x_MK, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", SIDES)
def test_rows_and_columns_are_the_same_weight(side: int) -> None:
    weight = made(130, 200, side)
    whole_NK = dense(weight)
    assert torch.equal(whole_NK, weight.row_range(0, 130))
    assert torch.equal(whole_NK[128:], weight.row_range(128, 130))
    assert torch.equal(whole_NK[:, 128:], weight.columns(128, 200, torch.float32))
    assert torch.equal(whole_NK[[5, 129]], weight.rows(torch.tensor([5, 129])))
    assert weight.num_bytes == 130 * 200 + 4 * (4 if side else 130)


@pytest.mark.parametrize("side", SIDES)
def test_parts_filled_by_ranges_of_rows_are_the_whole(side: int) -> None:
    values_NK = torch.randn(300, 200)
    weight = Fp8Weight.empty(300, 200, CPU, side=side)
    weight.fill(0, values_NK[:256])
    weight.fill(256, values_NK[256:])
    assert torch.equal(dense(weight), rounded(values_NK, weight.tile, WEIGHT_STEPS))


def test_stored_rows_are_kept_byte_for_byte() -> None:
    """Two parts of a layer, the second of which does not begin with one of 128 rows."""
    stored = [quantise(torch.randn(rows, 200), Tile(128, 128)) for rows in (176, 130)]
    weight = Fp8Weight.empty(306, 200, CPU, side=128, starts=(0, 176))
    assert weight.tile == Tile(16, 128)
    parts = [ScaledRows(values_MK, scale_GB, Tile(128, 128)) for values_MK, scale_GB in stored]
    weight.fill_scaled(0, ScaledRows(parts[0].values_MK[:128], parts[0].scale_GB[:1], Tile(128, 128)))
    weight.fill_scaled(128, ScaledRows(parts[0].values_MK[128:], parts[0].scale_GB[1:], Tile(128, 128)))
    weight.fill_scaled(176, parts[1])
    assert torch.equal(dense(weight), torch.cat([part.dense() for part in parts]))


@given(st.sampled_from(SIZES), st.sampled_from(SIDES), st.integers(0, 5) | st.just(70), st.booleans())
def test_products_are_those_of_rounded_values(size, side, num_tokens, with_bias):
    weight = made(*size, side)
    x_TK, bias_N = torch.randn(num_tokens, size[1]), torch.randn(size[0]) if with_bias else None
    expected_TN = rounded(x_TK, weight.token_tile).double() @ dense(weight).double().T
    expected_TN = expected_TN if bias_N is None else expected_TN + bias_N
    for impl in ("auto", "eager"):
        y_TN = matmul(x_TK, weight, bias_N, impl=impl)
        assert y_TN.dtype is torch.float32 and y_TN.shape == expected_TN.shape
        assert torch.allclose(y_TN.double(), expected_TN, rtol=1e-5, atol=1e-4)


def test_large_weights_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x_TK = made(300, 384, 128), torch.randn(5, 384)
    whole_TN, dx_TK = fp8_linear(x_TK, weight), fp8_input_grad(torch.ones(5, 300), weight)
    monkeypatch.setattr("harmonia.kernels.fp8._CPU_PART_BYTES", 1 << 10)
    assert torch.allclose(fp8_linear(x_TK, weight), whole_TN, atol=1e-5)
    assert torch.allclose(fp8_input_grad(torch.ones(5, 300), weight), dx_TK, atol=1e-5)


def test_a_token_does_not_depend_on_the_others() -> None:
    weight, x_TK = made(48, 200, 128), torch.randn(6, 200)
    x_TK[0] *= 1000
    assert torch.allclose(matmul(x_TK, weight)[3:4], matmul(x_TK[3:4], weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_invariant_products_do_not_depend_on_the_batch(side: int) -> None:
    weight = Fp8Weight.empty(130, 200, CPU, side=side, invariant=True)
    weight.fill(0, torch.randn(130, 200))
    x_TK = torch.randn(150, 200)
    all_TN = matmul(x_TK, weight)
    for start, count in ((0, 1), (7, 5), (3, 40), (20, 110)):
        assert torch.equal(matmul(x_TK[start : start + count], weight), all_TN[start : start + count])


@pytest.mark.parametrize("side", SIDES)
def test_gradients_pass_through_the_rounding(side: int) -> None:
    weight = made(48, 200, side)
    x_TK, dy_TN = torch.randn(7, 200, requires_grad=True), torch.randn(7, 48)
    matmul(x_TK, weight).backward(dy_TN)
    assert x_TK.grad is not None
    assert torch.allclose(x_TK.grad, dy_TN @ dense(weight), rtol=1e-5, atol=1e-4)


def test_full_weights_do_not_train() -> None:
    with pytest.raises(InvalidRequestError, match=r"kept in fp8.*train an adapter"):
        made(16, 16).require_grad()


# ------------------------------------------------------------------------------ GPU kernels, in the interpreter

triton = pytest.importorskip("triton")


def kernels():
    from harmonia.kernels import fp8_triton

    return fp8_triton


def rounding():
    from harmonia.kernels import fp8_round_triton

    return fp8_round_triton


@pytest.mark.parametrize(("num_in", "columns"), [(70, 70), (256, 128), (200, 128), (300, 300)])
def test_the_kernel_scales_as_torch_does(num_in: int, columns: int) -> None:
    x_TK = torch.randn(5, 2 * num_in)[:, :num_in]
    x_TK[2] = 0
    wide_TK, scale_TB = torch.full((5, num_in), torch.nan), torch.full((5, -(-num_in // columns)), torch.nan)
    rounding().quantise_into(x_TK, wide_TK, scale_TB, columns, 1)
    values_TK, expected_TB = quantise(x_TK, Tile(1, columns))
    assert torch.equal(scale_TB, expected_TB)
    assert torch.equal(wide_TK.to(E4M3).float(), values_TK.float())


CHOICES = [
    Choice(16, 32, 128, 1, 2, 4),
    Choice(16, 32, 128, 2, 2, 4, swap=True),
    Choice(16, 32, 128, 2, 2, 4, swap=True, spread=False),
    Choice(16, 16, 128, 3, 2, 4),
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("size", "num_tokens"), [((70, 384), 3), ((48, 300), 17), ((64, 70), 1), ((64, 70), 0)])
def test_the_product_agrees(choice: Choice, side: int, size: tuple[int, int], num_tokens: int) -> None:
    weight = made(*size, side, starts=(0, 16))
    x_TK, bias_N = torch.randn(num_tokens, size[1]), torch.randn(size[0])
    tile = weight.token_tile
    y_TN = kernels().product(*quantise(x_TK, tile, TOKEN_STEPS), weight, bias_N, choice, dtype=torch.float32)
    assert torch.allclose(y_TN, fp8_linear(x_TK, weight, bias_N, "eager"), rtol=1e-5, atol=1e-4)


def test_gate_and_up_are_joined() -> None:
    weight, x_TK = made(96, 128), torch.randn(5, 128)
    gate_TF, up_TF = fp8_linear(x_TK, weight, None, "eager").chunk(2, dim=1)
    choice = Choice(16, 32, 128, 1, 2, 4, swap=True)
    inputs = quantise(x_TK, weight.token_tile, TOKEN_STEPS)
    expected_TF = torch.nn.functional.silu(gate_TF) * up_TF
    y_TF = kernels().product(*inputs, weight, None, choice, dtype=torch.float32, gate="silu")
    assert torch.allclose(y_TF, expected_TF, rtol=1e-4, atol=1e-4)
    for block_n in (1, 64):
        choice = Choice(1, block_n, 128, 1, 2, 4)
        y_TF = kernels().row_product(*inputs, weight, None, choice, dtype=torch.float32, gate="silu")
        assert torch.allclose(y_TF, expected_TF, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(70, 384), (48, 300)])
def test_few_tokens_without_tensor_cores(size: tuple[int, int]) -> None:
    weight, x_TK = made(*size), on_grid(2, size[1])
    inputs = quantise(x_TK, weight.token_tile, TOKEN_STEPS)
    y_TN = kernels().row_product(*inputs, weight, None, Choice(1, 16, 128, 1, 2, 4), dtype=torch.float32)
    assert torch.allclose(y_TN, fp8_linear(x_TK, weight, None, "eager"), rtol=1e-5, atol=1e-4)


def test_rows_are_fitted() -> None:
    """Values that the first scale keeps exactly: see `on_grid`."""
    torch.manual_seed(2)
    w_MK = on_grid(6, 200) * 2.0 ** torch.arange(6)[:, None]
    tile = Tile(1, 200)
    assert torch.equal(rounded(w_MK, tile, WEIGHT_STEPS), w_MK)
    for num_steps in (WEIGHT_STEPS, TOKEN_STEPS):
        values_MK, scale_M1 = rounding().quantise_tokens(w_MK, 200, num_steps)
        assert torch.equal(dequantise(values_MK, scale_M1, tile), w_MK)


@pytest.mark.parametrize("side", SIDES)
def test_columns_are_dequantised(side: int) -> None:
    weight = made(40, 300, side, starts=(0, 24))
    assert torch.equal(kernels().dequantised_columns(weight, 128, 300, torch.float32), dense(weight)[:, 128:])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("invariant", [False, True])
def test_the_gpu_path_forward_and_backward(side: int, invariant: bool) -> None:
    weight = made(64, 256, side)
    weight = Fp8Weight(weight.weight_NK, weight.scale_GB, weight.tile, invariant)
    x_TK, dy_TN = on_grid(3, 256), torch.randn(3, 64)
    assert torch.allclose(
        fp8_linear(x_TK, weight, impl="triton"), fp8_linear(x_TK, weight, impl="eager"), rtol=1e-5, atol=1e-4
    )
    assert torch.allclose(fp8_input_grad(dy_TN, weight, "triton"), dy_TN @ dense(weight), rtol=1e-5, atol=1e-4)
