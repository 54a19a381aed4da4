"""Draws: the GPU kernels, in Triton's interpreter, against the plain version."""

import os

import pytest
import torch

from harmonia.kernels.sample import SamplingTensors, sample
from tests.unit.kernels.test_sample import keys, settings_of

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has these with a GPU")

FILTERS = (
    {},
    {"top_p": 0.9},
    {"min_p": 0.02},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.05},
    {"top_p": 1.0, "top_k": 300},
)
SHARP = ({"top_k": 5}, {"top_p": 0.5}, {"top_k": 40, "top_p": 0.0})


def agree(logits_RV: torch.Tensor, settings: SamplingTensors) -> None:
    """Both versions draw the same."""
    assert torch.equal(sample(logits_RV, settings, "triton"), sample(logits_RV, settings, "eager"))


@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_both_versions_draw_the_same(values):
    torch.manual_seed(0)
    spread_R1 = torch.tensor([[0.5], [4.0]])
    agree(spread_R1 * torch.randn(2, 1200), settings_of(2, keys(2), temperature=0.8, **values))


@pytest.mark.parametrize("values", SHARP, ids=str)
def test_equal_probabilities_stand_or_fall_together(values):
    torch.manual_seed(1)
    coarse_RV = torch.randn(4, 300).mul(2).round()
    coarse_RV[0] = 0.0
    coarse_RV[1, 10:] = -torch.inf
    coarse_RV[2, 5] = 1e4
    agree(coarse_RV, settings_of(4, keys(4), **values))


def test_rows_of_every_kind_in_one_batch():
    torch.manual_seed(2)
    logits_RV = 3 * torch.randn(10, 5000)  # more than one program a row
    settings = SamplingTensors(
        temperature_R=torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.3]),
        keys_R=keys(10),
        top_k_R=torch.tensor([5000, 5000, 3, 2, 50, 5000, 5000, 40, 1, 5000]),
        top_p_R=torch.tensor([0.5, 1.0, 0.9, 1.0, 0.7, 0.95, 1.0, 0.2, 0.5, 0.99]),
        min_p_R=torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, 0.01, 0.3, 0.0, 0.0, 0.0]),
    )
    agree(logits_RV, settings)
    agree(logits_RV[2:3], SamplingTensors(temperature_R=settings.temperature_R[2:3], keys_R=settings.keys_R[2:3]))


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("size", [1, 1000, 5000])
def test_greedy_takes_the_first_of_equals(rows, size):
    torch.manual_seed(3)
    logits_RV = torch.randn(rows, size).round()
    agree(logits_RV, SamplingTensors())
    agree(logits_RV.T.contiguous().T, settings_of(rows, keys(rows), temperature=0.0))


def test_a_row_of_a_wider_matrix():
    torch.manual_seed(4)
    agree(torch.randn(3, 900)[:, 100:800], settings_of(3, keys(3), top_p=0.8))


def test_some_token_comes_even_where_nothing_is_allowed():
    logits_RV = torch.full((2, 30), -torch.inf)
    assert sample(logits_RV, SamplingTensors(), "triton").tolist() == [0, 0]


@pytest.mark.parametrize("key", [0, -1, 2**63 - 1, -(2**63)])
def test_every_key(key):
    torch.manual_seed(5)
    agree(torch.randn(1, 400), SamplingTensors(temperature_R=torch.ones(1), keys_R=torch.tensor([key])))
