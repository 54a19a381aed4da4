"""Log-probabilities, entropies and their gradients: the compiled kernels against torch."""

import pytest
import torch

from harmonia.kernels.logprobs import entropies, log_sums, logits_to_gradient, token_logprobs, top_logprobs

SIZES = ((1, 1), (3, 7), (5, 1024), (4, 5000), (0, 9))


def logits_of(size: tuple[int, int], spread: float = 5.0) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(size) * spread


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        assert (actual - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.1, 5.0, 1000.0])
def test_compiled_sums_and_entropies_agree_with_torch(size, spread):
    logits_RV = logits_of(size, spread)
    log_sum_R = log_sums(logits_RV, "eager")
    assert_close(log_sums(logits_RV), log_sum_R)
    assert_close(entropies(logits_RV, log_sum_R), entropies(logits_RV, log_sum_R, "eager"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_gradients_agree_with_autograd(size, softcap, impl, monkeypatch):
    monkeypatch.setattr("harmonia.kernels.logprobs._BLOCK_BYTES", 1 << 10)
    scores_RV = logits_of(size).requires_grad_()
    logits_RV = scores_RV * 1 if softcap is None else torch.tanh(scores_RV / softcap) * softcap
    ids_R, dlogprobs_R = torch.randint(size[1], size[:1]), torch.randn(size[0])
    token_logprobs(logits_RV, ids_R).backward(dlogprobs_R)
    logits_RV = logits_RV.detach()
    logits_to_gradient(logits_RV, ids_R, log_sums(logits_RV), dlogprobs_R, softcap, impl)
    assert_close(logits_RV, scores_RV.grad)


@pytest.mark.parametrize("impl", ["native", "eager"])
def test_masked_tokens_have_no_share(impl):
    logits_RV = torch.tensor([[1.0, float("-inf"), 1.0, float("-inf")], [float("-inf")] * 4])
    log_sum_R = log_sums(logits_RV, impl)
    assert log_sum_R.tolist() == pytest.approx([1 + 0.6931472, float("-inf")])
    assert float(entropies(logits_RV[:1], log_sum_R[:1], impl)) == pytest.approx(0.6931472)


@pytest.mark.parametrize("impl", ["native", "eager"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_broken_logit_breaks_its_row_and_no_other(impl, place):
    logits_RV = torch.zeros(2, 4)
    logits_RV[0, place] = float("nan")
    log_sum_R = log_sums(logits_RV, impl)
    assert log_sum_R.isnan().tolist() == [True, False]
    assert entropies(logits_RV, log_sum_R, impl).isnan().tolist() == [True, False]
    logits_to_gradient(logits_RV, torch.tensor([1, 1]), log_sum_R, torch.ones(2), impl=impl)
    assert logits_RV.isnan().all(dim=1).tolist() == [True, False]


def test_the_best_tokens_have_the_same_log_probabilities():
    logits_RV = logits_of((5, 100))
    values_RN, ids_RN = top_logprobs(logits_RV, 3)
    assert torch.equal(values_RN[:, 1], token_logprobs(logits_RV, ids_RN[:, 1]))


def test_bf16_logits_are_widened():
    logits_RV = logits_of((5, 100)).bfloat16()
    assert token_logprobs(logits_RV, torch.arange(5)).dtype is torch.float32
