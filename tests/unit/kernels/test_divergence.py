"""Divergences of rows of logits and their gradients: compiled and eager, against torch in fp64."""

from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from harmonia.kernels.divergence import divergences_to_gradient
from harmonia.kernels.native import Impl
from harmonia.protocol.losses import Divergence

KINDS: tuple[Divergence, ...] = get_args(Divergence)
SIZES = ((1, 1, 1), (3, 7, 9), (4, 300, 257), (2, 5000, 5003), (0, 9, 9))


def worth(z_RV: torch.Tensor, t_RV: torch.Tensor, divergence: Divergence) -> tuple[torch.Tensor, ...]:
    shared = min(z_RV.shape[1], t_RV.shape[1])
    log_q_RV, log_p_RV = F.log_softmax(z_RV[:, :shared], -1), F.log_softmax(t_RV[:, :shared], -1)
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    value_R = {
        "forward_kl": (p_RV * (log_p_RV - log_q_RV)).sum(-1),
        "reverse_kl": (q_RV * (log_q_RV - log_p_RV)).sum(-1),
        "total_variation": (p_RV - q_RV).abs().sum(-1) / 2,
    }[divergence]
    return value_R, torch.minimum(p_RV, q_RV).sum(-1), (p_RV.argmax(-1) == q_RV.argmax(-1)).double()


@pytest.mark.parametrize("impl", ["native", "eager"])
@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("spread", "softcap"), [(0.1, None), (5.0, None), (5.0, 8.0)])
def test_rows_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    impl: Impl,
    divergence: Divergence,
    size: tuple[int, int, int],
    spread: float,
    softcap: float | None,
) -> None:
    monkeypatch.setattr("harmonia.kernels.divergence._BLOCK_BYTES", 1 << 12)
    torch.manual_seed(0)
    rows, num_logits, num_teacher_logits = size
    scores_RS = (torch.randn(rows, num_logits) * spread).double().requires_grad_()
    logits_RS = scores_RS * 1 if softcap is None else torch.tanh(scores_RS / softcap) * softcap
    teacher_RU, weights_R = torch.randn(rows, num_teacher_logits) * spread, torch.randn(rows)
    expected = worth(logits_RS, teacher_RU.double(), divergence)
    (expected[0] * weights_R).sum().backward()

    given_RS, kept_RU = logits_RS.detach().float(), teacher_RU.clone()
    dlogits_RS, found = divergences_to_gradient(given_RS, teacher_RU, weights_R, divergence, softcap, impl)

    assert dlogits_RS.data_ptr() == given_RS.data_ptr()
    assert torch.equal(teacher_RU, kept_RU)
    assert scores_RS.grad is not None
    if divergence == "total_variation":  # it has a corner where p is q, where rounding decides the side
        shared = min(num_logits, num_teacher_logits)
        ratio_RV = F.log_softmax(logits_RS[:, :shared], -1) - F.log_softmax(teacher_RU[:, :shared].double(), -1)
        at_corner_RV = ratio_RV.abs() < 1e-5
        dlogits_RS[:, :shared][at_corner_RV] = scores_RS.grad[:, :shared][at_corner_RV].float()
    torch.testing.assert_close(dlogits_RS.double(), scores_RS.grad, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["native", "eager"])
@pytest.mark.parametrize("divergence", KINDS)
def test_far_tokens_and_equal_rows_are_finite(impl: Impl, divergence: Divergence) -> None:
    logits_RS = torch.tensor([[0.0, -2e3, 5e2, 5e2], [1.0, 2.0, 3.0, 4.0]])
    teacher_RU = torch.tensor([[-2e3, 0.0, 5e2, 5e2], [1.0, 2.0, 3.0, 4.0]])
    dlogits_RS, found = divergences_to_gradient(logits_RS, teacher_RU, torch.ones(2), divergence, None, impl)
    assert found.value_R.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found.overlap_R.tolist() == pytest.approx([1.0, 1.0])
    assert found.agrees_R.tolist() == [1.0, 1.0]
    assert dlogits_RS.abs().max() < 1e-6


@pytest.mark.parametrize("impl", ["native", "eager"])
@pytest.mark.parametrize("divergence", KINDS)
def test_a_broken_row_stays_alone(impl: Impl, divergence: Divergence) -> None:
    torch.manual_seed(0)
    logits_RS, teacher_RU = torch.randn(3, 40), torch.randn(3, 40)
    logits_RS[0, 5] = teacher_RU[2, 7] = float("nan")
    dlogits_RS, found = divergences_to_gradient(logits_RS, teacher_RU, torch.ones(3), divergence, None, impl)
    assert found.value_R.isnan().tolist() == [True, False, True]
    assert dlogits_RS.isnan().all(dim=1).tolist() == [True, False, divergence != "total_variation"]


def test_half_precision_is_asked_for() -> None:
    logits_RS, teacher_RU = torch.randn(2, 9), torch.randn(2, 9)
    dlogits_RS, _ = divergences_to_gradient(logits_RS, teacher_RU, torch.ones(2), "forward_kl", dtype=torch.bfloat16)
    assert dlogits_RS.dtype is torch.bfloat16
