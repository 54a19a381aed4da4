"""Scores and their gradients against autograd."""

import pytest
import torch

from harmonia.errors import UnsupportedModelError
from harmonia.train.scalar_head import ScalarHead


def test_a_new_head_scores_zero():
    assert ScalarHead.zeros(8).scores(torch.randn(3, 8)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_and_gradients_are_those_of_autograd(dtype):
    torch.manual_seed(0)
    hidden_CE, dvalues_C = torch.randn(5, 16).to(dtype).requires_grad_(), torch.randn(5)
    weight_E = torch.randn(16, requires_grad=True)
    expected_C = hidden_CE.float() @ weight_E
    dhidden_CE, dweight_E = torch.autograd.grad(expected_C, (hidden_CE, weight_E), dvalues_C)
    head = ScalarHead(weight_E)
    torch.testing.assert_close(head.scores(hidden_CE), expected_C.detach())
    torch.testing.assert_close(head.backward(hidden_CE, dvalues_C), dhidden_CE)
    torch.testing.assert_close(weight_E.grad, dweight_E)


def test_gradients_add_up_in_the_buffer_that_was_given():
    head = ScalarHead(torch.ones(4).requires_grad_())
    buffer = torch.full((6,), 10.0)
    head.weight_E.grad = buffer[2:]
    for _ in range(2):
        head.backward(torch.ones(1, 4), torch.tensor([3.0]))
    assert buffer.tolist() == [10, 10, 16, 16, 16, 16]


def test_a_frozen_head_passes_gradients_on():
    head = ScalarHead(torch.full((4,), 2.0))
    assert head.backward(torch.ones(1, 4), torch.tensor([3.0])).tolist() == [[6, 6, 6, 6]]
    assert head.weight_E.grad is None


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_a_stored_head_is_read_as_fp32(shape):
    stored = torch.randn(shape).to(torch.bfloat16)
    head = ScalarHead.loaded(stored, 4)
    torch.testing.assert_close(head.weight_E, stored.float().flatten())


@pytest.mark.parametrize("stored", [torch.zeros(5), torch.zeros(2, 4), torch.zeros(4, dtype=torch.int64)])
def test_other_shapes_are_refused(stored):
    with pytest.raises(UnsupportedModelError, match="scalar head of 4 features cannot be read from"):
        ScalarHead.loaded(stored, 4)
