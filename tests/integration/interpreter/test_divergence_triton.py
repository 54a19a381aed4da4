"""The GPU kernel for divergences, in Triton's interpreter or on a GPU, against the eager version."""

import pytest
import torch

from harmonia.kernels.divergence import divergences_to_gradient
from harmonia.protocol.losses import Divergence

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("forward_kl", "reverse_kl", "total_variation")
SIZES = ((1, 1, 1), (3, 7, 9), (4, 300, 257), (2, 5000, 5003), (0, 9, 9))


def batch(size: tuple[int, int, int], softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    rows, num_logits, num_teacher_logits = size
    logits_RS, teacher_RU = torch.randn(rows, num_logits) * 4, torch.randn(rows, num_teacher_logits) * 4
    if softcap is not None:
        logits_RS = torch.tanh(logits_RS / softcap) * softcap
    return logits_RS.to(DEVICE), teacher_RU.to(DEVICE), torch.randn(rows).to(DEVICE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize(("softcap", "dtype"), [(None, torch.float32), (8.0, torch.float32), (None, torch.bfloat16)])
def test_rows_and_gradients_agree_with_the_eager_version(
    size: tuple[int, int, int], divergence: Divergence, softcap: float | None, dtype: torch.dtype
) -> None:
    logits_RS, teacher_RU, weights_R = batch(size, softcap)
    memory, kept_RU = logits_RS.data_ptr(), teacher_RU.clone()
    arguments = teacher_RU, weights_R, divergence, softcap
    expected_RS, expected = divergences_to_gradient(logits_RS.clone(), *arguments, "eager", dtype)
    dlogits_RS, found = divergences_to_gradient(logits_RS, *arguments, "triton", dtype)

    assert (dlogits_RS.data_ptr(), dlogits_RS.dtype, dlogits_RS.shape) == (memory, dtype, expected_RS.shape)
    tolerance = 1e-5 if dtype is torch.float32 else 8e-3
    torch.testing.assert_close(dlogits_RS.float(), expected_RS.float(), rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(teacher_RU, kept_RU)


def test_a_broken_row_stays_alone() -> None:
    logits_RS, teacher_RU, _ = batch((3, 40, 40))
    logits_RS[0, 5] = float("nan")
    teacher_RU[2, 7] = float("nan")
    weights_R = torch.ones(3, device=DEVICE)
    dlogits_RS, found = divergences_to_gradient(logits_RS, teacher_RU, weights_R, "forward_kl", impl="triton")
    assert found.value_R.isnan().tolist() == [True, False, True]
    assert dlogits_RS.isnan().all(dim=1).tolist() == [True, False, True]
