"""Products with packed and 8-bit weights against the plain product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.kernels.matmul import DenseWeight, Int8Weight, matmul

CPU = torch.device("cpu")
SIZES = ((64, 32), (128, 48), (192, 64), (13, 70), (35, 576), (64, 70))


def dense(num_out: int, num_in: int, seed: int = 0) -> DenseWeight:
    torch.manual_seed(seed)
    weight = DenseWeight.empty(num_out, num_in, torch.float32, CPU)
    weight.fill(0, torch.randn(num_out, num_in))
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


@given(st.sampled_from(SIZES), st.integers(0, 9), st.booleans(), st.integers(0, 1000))
def test_dense_agrees_with_the_plain_product(size, num_tokens, with_bias, seed):
    weight = dense(*size, seed)
    x_TK, bias_N = torch.randn(num_tokens, size[1]), torch.randn(size[0]) if with_bias else None
    expected = matmul(x_TK, weight, bias_N, impl="eager")
    assert_close(matmul(x_TK, weight, bias_N), expected)
    assert weight.is_final


@given(st.sampled_from(SIZES), st.integers(0, 9) | st.sampled_from((96, 97, 130)), st.booleans(), st.integers(0, 1000))
def test_int8_agrees_with_the_plain_product(size, num_tokens, with_bias, seed):
    weight = int8(*size, seed)
    x_TK, bias_N = torch.randn(num_tokens, size[1]), torch.randn(size[0]) if with_bias else None
    assert_close(matmul(x_TK, weight, bias_N), matmul(x_TK, weight, bias_N, impl="eager"))


def test_int8_of_many_tokens_goes_through_a_large_matrix_in_parts():
    weight, x_TK = int8(9000, 256), torch.randn(100, 256)
    assert_close(matmul(x_TK, weight), matmul(x_TK, weight, impl="eager"))


@pytest.mark.parametrize("make", [dense, int8])
def test_a_token_gets_the_same_in_any_batch(make):
    weight, x_TK = make(192, 64), torch.randn(33, 64)
    alone = torch.cat([matmul(x_K[None], weight) for x_K in x_TK])
    for num_tokens in (2, 3, 5, 33):
        assert_close(matmul(x_TK[:num_tokens], weight), alone[:num_tokens])


@pytest.mark.parametrize("size", SIZES)
def test_packing_keeps_rows_and_values(size):
    weight, ids = dense(*size), torch.tensor([0, 5, 12, 5])
    before = weight.weight_NK.clone()
    weight.pack()
    assert torch.equal(weight.rows(ids), before[ids])
    assert torch.equal(weight.dense(), before)
    assert weight.weight_NK.nbytes == before.nbytes


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
    if weight.packed is not None:
        with pytest.raises(AssertionError):
            weight.fill(0, torch.zeros(64, 32))


def test_other_types_take_the_plain_product():
    weight = DenseWeight(torch.randn(64, 32, dtype=torch.bfloat16))
    assert matmul(torch.randn(2, 32, dtype=torch.bfloat16), weight).dtype is torch.bfloat16
    assert not weight.is_final
