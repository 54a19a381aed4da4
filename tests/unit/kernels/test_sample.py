"""Filters and draws against a plain reference; edits of logits; log-probabilities."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.engine.sampler import draw_keys
from harmonia.kernels.logprobs import token_logprobs, top_logprobs
from harmonia.kernels.sample import Penalties, SamplingTensors, sample

IMPLS = pytest.mark.parametrize("impl", ["native", "eager"])


def keys(count: int) -> torch.Tensor:
    """As an engine makes them for one seed."""
    return torch.from_numpy(draw_keys(np.full(count, 7, dtype=np.uint64), np.arange(count, dtype=np.uint64)))


def settings_of(rows: int, keys_R: torch.Tensor, **values: float | None) -> SamplingTensors:
    """The same settings for every row."""
    tensors = {f"{name}_R": torch.full((rows,), value) for name, value in values.items() if value is not None}
    return SamplingTensors(keys_R=keys_R, **({"temperature_R": torch.ones(rows)} | tensors))


def kept(logits_V: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """What the filters leave, in the plainest way."""
    scaled_V = logits_V.double().numpy() / temperature
    probs_V = np.exp(scaled_V - scaled_V.max())
    probs_V /= probs_V.sum()
    ids = sorted(range(len(probs_V)), key=lambda token: -probs_V[token])[: top_k or None]
    total, running, nucleus = sum(probs_V[token] for token in ids), 0.0, []
    for token in ids:
        if running >= top_p * total:
            break
        nucleus.append(token)
        running += probs_V[token]
    return {token for token in nucleus if probs_V[token] >= min_p * probs_V.max()}


@IMPLS
@hypothesis.settings(max_examples=25)
@given(
    st.integers(2, 700), st.sampled_from((0.3, 1.0, 2.0)), st.sampled_from((0, 1, 3, 40, 700)),
    st.sampled_from((0.1, 0.5, 0.95, 1.0)), st.sampled_from((0.0, 0.02, 0.5)), st.integers(0, 1000),
)  # fmt: skip
def test_filters_agree_with_a_plain_reference(impl, size, temperature, top_k, top_p, min_p, seed):
    torch.manual_seed(seed)
    logits_V, keys_R = 3 * torch.randn(size), keys(256)
    settings = settings_of(
        256, keys_R, temperature=temperature, top_k=min(top_k or size, size), top_p=top_p, min_p=min_p
    )
    drawn = set(sample(logits_V.expand(256, -1), settings, impl).tolist())
    # Half a hair to either side: the reference sums in another order.
    assert drawn <= kept(logits_V, temperature, top_k, top_p + 1e-5, min_p * 0.9999)
    certain = kept(logits_V, temperature, top_k, top_p - 1e-5, min_p * 1.0001)
    probs_V = torch.softmax(logits_V / temperature, 0)
    total = sum(float(probs_V[token]) for token in certain)
    assert {token for token in certain if probs_V[token] > total / 12} <= drawn


@IMPLS
def test_draws_follow_the_distribution(impl):
    torch.manual_seed(0)
    logits_V, draws = torch.randn(20), 20_000
    ids_R = sample(logits_V.expand(draws, -1), settings_of(draws, keys(draws), temperature=0.8), impl)
    expected_V = torch.softmax(logits_V / 0.8, 0) * draws
    chi_square = ((ids_R.bincount(minlength=20) - expected_V) ** 2 / expected_V).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand


@IMPLS
def test_noise_in_the_logits_seldom_changes_a_draw(impl):
    torch.manual_seed(4)
    logits_RV = 3 * torch.randn(200, 5000)
    settings = settings_of(200, keys(200))
    noisy_RV = logits_RV + 2e-5 * torch.randn_like(logits_RV)
    changed = (sample(logits_RV, settings, impl) != sample(noisy_RV, settings, impl)).sum()
    assert changed <= 2  # in the order of the vocabulary, where sums shift, it is one in ten


@IMPLS
def test_a_row_draws_the_same_alone_and_in_company(impl):
    torch.manual_seed(1)
    logits_RV, keys_R = 4 * torch.randn(40, 5000), keys(40)
    settings = {"temperature": 0.9, "top_k": 200, "top_p": 0.9, "min_p": 0.001}
    together = sample(logits_RV, settings_of(40, keys_R, **settings), impl).tolist()
    for row in range(40):
        alone = sample(logits_RV[row : row + 1], settings_of(1, keys_R[row : row + 1], **settings), impl)
        assert alone.tolist() == [together[row]]


def test_both_versions_draw_the_same():
    torch.manual_seed(2)
    logits_RV, keys_R = 4 * torch.randn(50, 3001), keys(50)
    for values in ({"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.01}, {}, {"top_k": 100, "top_p": 0.5}):
        settings = settings_of(50, keys_R, **values)
        assert torch.equal(sample(logits_RV, settings, "native"), sample(logits_RV, settings, "eager"))


@IMPLS
def test_temperature_zero_is_greedy_beside_rows_that_are_not(impl):
    logits_RV = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    settings = SamplingTensors(temperature_R=torch.tensor([0.0, 1.0]), keys_R=torch.tensor([5, 6]))
    assert sample(logits_RV, settings, impl).tolist() == [1, 2]


def test_all_greedy():
    logits_RV = torch.randn(3, 100)
    assert torch.equal(sample(logits_RV, SamplingTensors()), logits_RV.argmax(-1))


@IMPLS
@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_what_is_masked_or_banned_never_comes(impl, key):
    logits_RV = torch.zeros(1, 70)
    words = torch.zeros(1, 3, dtype=torch.int32)
    words[0, 0], words[0, 2] = 0b1010, 0b100000  # tokens 1, 3 and 69
    settings = SamplingTensors(
        temperature_R=torch.tensor([1.0]),
        keys_R=torch.tensor([key]),
        masks=(torch.tensor([0]), words),
        banned=(torch.tensor([0]), torch.tensor([3])),
    )
    assert sample(logits_RV, settings, impl).item() in (1, 69)
    assert logits_RV.eq(0).all()


def test_the_highest_bit_of_a_mask_counts():
    words = torch.tensor([[-(2**31)]], dtype=torch.int32)
    settings = SamplingTensors(masks=(torch.tensor([0]), words))
    assert sample(torch.zeros(1, 40), settings).item() == 31


def test_bias_adds_up():
    rows, ids, values = torch.tensor([0, 0, 1]), torch.tensor([2, 2, 0]), torch.tensor([2.0, 2.0, -9.0])
    logits_RV = torch.tensor([[0.0, 3.0, 0.0], [3.0, 0.0, 1.0]])
    assert sample(logits_RV, SamplingTensors(bias=(rows, ids, values))).tolist() == [2, 2]


def test_penalties():
    logits_RV = torch.tensor([[9.0, 9.0, 9.0], [4.0, 3.0, -1.0], [-4.0, -3.0, -9.0], [4.0, 3.0, 3.9]])
    penalties = Penalties(
        rows_P=torch.tensor([1, 2, 3]),
        answer_counts_PV=torch.tensor([[0.0, 0, 0], [0, 0, 0], [3, 1, 0]]),
        seen_PV=torch.tensor([[True, False, False], [False, True, False], [False, False, False]]),
        repetition_P=torch.tensor([2.0, 2.0, 1.0]),
        presence_P=torch.tensor([0.0, 0.0, 0.05]),
        frequency_P=torch.tensor([0.0, 0.0, 0.1]),
    )
    assert sample(logits_RV, SamplingTensors(penalties=penalties)).tolist() == [0, 1, 0, 2]


def test_logprobs_are_natural_and_of_the_whole_vocabulary():
    logits_RV, ids_R = 5 * torch.randn(4, 50), torch.tensor([0, 49, 7, 3])
    expected_RV = torch.log_softmax(logits_RV.double(), dim=-1)
    torch.testing.assert_close(
        token_logprobs(logits_RV, ids_R).double(), expected_RV[range(4), ids_R], atol=1e-5, rtol=0
    )
    values_RN, ids_RN = top_logprobs(logits_RV, 5)
    torch.testing.assert_close(values_RN.double(), expected_RV.gather(1, ids_RN), atol=1e-5, rtol=0)
    assert torch.equal(ids_RN, expected_RV.topk(5).indices)
