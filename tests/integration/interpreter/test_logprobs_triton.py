"""The GPU kernels for log-probabilities, in Triton's interpreter or on a GPU, against the eager versions."""

import pytest
import torch

from harmonia.kernels.logprobs import entropies, log_sums, logits_to_gradient, summed_logprobs

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = ((1, 1), (3, 7), (5, 1024), (3, 9001), (0, 9))


def batch(size: tuple[int, int], spread: float = 5.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits_RV = (torch.randn(size) * spread).to(DEVICE)
    return logits_RV, torch.randint(size[1], size[:1]).to(DEVICE), torch.randn(size[0]).to(DEVICE)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.1, 5.0, 1000.0])
def test_sums_log_probabilities_and_entropies(size, spread):
    logits_RV, ids_R, _ = batch(size, spread)
    log_sum_R, logprob_R = summed_logprobs(logits_RV, ids_R, "triton")
    expected_R, expected_logprob_R = summed_logprobs(logits_RV, ids_R, "eager")
    assert_close(log_sum_R, expected_R)
    assert_close(log_sums(logits_RV, "triton"), expected_R)
    assert_close(logprob_R, expected_logprob_R)
    assert_close(entropies(logits_RV, expected_R, "triton"), entropies(logits_RV, expected_R, "eager"), 2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_take_the_place_of_logits(size, softcap, dtype):
    logits_RV, ids_R, dlogprobs_R = batch(size)
    if softcap is not None:
        logits_RV = torch.tanh(logits_RV / softcap) * softcap
    log_sum_R = log_sums(logits_RV, "eager")
    expected_RV = logits_to_gradient(logits_RV.clone(), ids_R, log_sum_R, dlogprobs_R, softcap, "eager", dtype)
    memory = logits_RV.data_ptr()
    dlogits_RV = logits_to_gradient(logits_RV, ids_R, log_sum_R, dlogprobs_R, softcap, "triton", dtype)
    assert (dlogits_RV.data_ptr(), dlogits_RV.dtype, dlogits_RV.shape) == (memory, dtype, expected_RV.shape)
    assert_close(dlogits_RV.float(), expected_RV.float(), 1e-6 if dtype is torch.float32 else 8e-3)


def test_masked_tokens_have_no_share_and_a_broken_row_stays_alone():
    logits_RV = torch.zeros(3, 6, device=DEVICE)
    logits_RV[0, 3:] = float("-inf")
    logits_RV[1] = float("-inf")
    logits_RV[2, 5] = float("nan")
    log_sum_R = log_sums(logits_RV, "triton")
    assert log_sum_R.tolist() == pytest.approx([1.0986123, float("-inf"), float("nan")], nan_ok=True)
    logits_RV, log_sum_R = logits_RV[::2].contiguous(), log_sum_R[::2].contiguous()
    assert entropies(logits_RV, log_sum_R, "triton").tolist() == pytest.approx([1.0986123, float("nan")], nan_ok=True)
    ids_R, ones_R = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.ones(2, device=DEVICE)
    dlogits_RV = logits_to_gradient(logits_RV, ids_R, log_sum_R, ones_R, impl="triton", dtype=torch.bfloat16)
    assert dlogits_RV[0, 3:].tolist() == [0, 0, 0]
    assert dlogits_RV.isnan().all(dim=1).tolist() == [False, True]
