"""Products with packed and 8-bit weights against the plain product."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.kernels.matmul import DenseWeight, Int8Weight, matmul

CPU = torch.device("cpu")
NUM_TOKENS = st.integers(0, 9) | st.sampled_from((17, 96, 97, 160, 161))
SIZES = ((64, 32), (128, 48), (192, 64), (13, 70), (35, 576), (64, 70))


def dense(num_out: int, num_in: int, seed: int = 0, *, published: bool = False) -> DenseWeight:
    """published: with values that bf16 holds exactly, as most checkpoints have."""
    torch.manual_seed(seed)
    weight = DenseWeight.empty(num_out, num_in, torch.float32, CPU)
    values_NK = torch.randn(num_out, num_in)
    weight.fill(0, values_NK.bfloat16() if published else values_NK)
    return weight


def int8(num_out: int, num_in: int, seed: int = 0) -> Int8Weight:
    torch.manual_seed(seed)
    weight = Int8Weight.empty(num_out, num_in, CPU)
    weight.fill(0, torch.randn(num_out, num_in))
    return weight


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        assert (actual - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@given(st.sampled_from(SIZES), NUM_TOKENS, st.booleans(), st.booleans(), st.integers(0, 1000))
def test_dense_agrees_with_the_plain_product(size, num_tokens, with_bias, published, seed):
    weight = dense(*size, seed, published=published)
    x_TK, bias_N = torch.randn(num_tokens, size[1]), torch.randn(size[0]) if with_bias else None
    expected = matmul(x_TK, weight, bias_N, impl="eager")
    assert_close(matmul(x_TK, weight, bias_N), expected)
    assert weight.is_final


@given(st.sampled_from(SIZES), NUM_TOKENS, st.booleans(), st.integers(0, 1000))
def test_int8_agrees_with_the_plain_product(size, num_tokens, with_bias, seed):
    weight = int8(*size, seed)
    x_TK, bias_N = torch.randn(num_tokens, size[1]), torch.randn(size[0]) if with_bias else None
    assert_close(matmul(x_TK, weight, bias_N), matmul(x_TK, weight, bias_N, impl="eager"))


@pytest.mark.parametrize("make", [int8, partial(dense, published=True)], ids=["int8", "bf16"])
def test_many_tokens_go_through_a_large_matrix_in_parts(make, monkeypatch):
    monkeypatch.setattr("harmonia.kernels.matmul_native._DEQUANTISED_BYTES", 1 << 17)
    weight, x_TK, bias_N = make(576, 256), torch.randn(170, 256), torch.randn(576)
    assert_close(matmul(x_TK, weight, bias_N), matmul(x_TK, weight, bias_N, impl="eager"))


@pytest.mark.parametrize("make", [dense, int8, partial(dense, published=True)], ids=["fp32", "int8", "bf16"])
def test_a_token_gets_the_same_in_any_batch(make):
    weight, x_TK = make(192, 64), torch.randn(33, 64)
    alone = torch.cat([matmul(x_K[None], weight) for x_K in x_TK])
    for num_tokens in (2, 3, 5, 33):
        assert_close(matmul(x_TK[:num_tokens], weight), alone[:num_tokens])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("published", [False, True])
def test_packing_keeps_rows_and_values(size, published):
    weight, ids = dense(*size, published=published), torch.tensor([0, 5, 12, 5])
    before = weight.weight_NK.clone()
    weight.pack()
    assert torch.equal(weight.rows(ids), before[ids])
    assert torch.equal(weight.dense(), before)
    assert weight.weight_NK.nbytes in (before.nbytes, before.nbytes // 2)
    assert weight.rows(ids).dtype is torch.float32


def test_a_weight_stays_in_rows_where_panels_would_be_slow(monkeypatch):
    monkeypatch.setattr("harmonia.kernels.weight.has_panels", lambda: False)
    weight, x_TK = dense(64, 32), torch.randn(3, 32)
    assert_close(matmul(x_TK, weight), matmul(x_TK, weight, impl="eager"))
    assert weight.is_final and weight.panels_XKP is None


def test_a_packed_weight_still_gives_gradients():
    weight, x_TK = dense(64, 32), torch.randn(3, 32)
    expected = matmul(x_TK, weight, impl="eager")
    with torch.inference_mode():
        matmul(x_TK, weight)
    x_TK.requires_grad_()
    y_TN = matmul(x_TK, weight)
    y_TN.sum().backward()
    assert_close(y_TN.detach(), expected)
    assert_close(x_TK.grad, weight.dense().sum(0).expand(3, 32))


def test_a_filled_and_used_weight_is_not_filled_again():
    weight = dense(64, 32)
    matmul(torch.randn(1, 32), weight)
    if weight.panels_XKP is not None:
        with pytest.raises(AssertionError):
            weight.fill(0, torch.zeros(64, 32))


def test_other_types_take_the_plain_product():
    weight = DenseWeight(torch.randn(64, 32, dtype=torch.bfloat16))
    assert matmul(torch.randn(2, 32, dtype=torch.bfloat16), weight).dtype is torch.bfloat16
    assert not weight.is_final
