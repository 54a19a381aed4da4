"""What the losses of `harmonia.protocol.losses` are worth, and their derivatives.

Shapes: W weighted tokens of one side; a pair has two sides, the preferred one first. A side's values are the natural
log-probabilities of its weighted tokens, or their scores. Weights multiply in language modelling and tangents only;
elsewhere they chose the tokens and their magnitude means nothing.

Everything is computed in fp64: the vectors are short, the callers' lists are doubles, and ratios of log-probabilities
that differ by hundreds neither overflow nor turn an advantage of 0 into NaN. Nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harmonia.errors import InvalidRequestError
from harmonia.protocol.losses import (
    PAIRED,
    SCALAR,
    Dpo,
    Grpo,
    Gspo,
    LanguageModelling,
    Loss,
    Mse,
    MsePerToken,
    Ppo,
    Ranking,
    Tangents,
    TrustRegionMse,
)
from harmonia.train.samples import Sample, vector

_NOT_NEGATIVE = frozenset({"beta", "clip_range", "kl_beta", "left_clip", "right_clip"})


@dataclass(frozen=True)
class KnownDerivative:
    """One side of a pair whose other side was already read: every value of the side has the same derivative."""

    value: float
    """What the side adds to the reported loss, whatever its values are."""

    derivative: float
    """dloss/dvalue."""


Evaluable = Loss | KnownDerivative


def check(loss: Loss, sides: Sequence[Sample], is_scalar: bool) -> None:
    """Raise `InvalidRequestError` unless the loss fits its samples and the model's head (`is_scalar`)."""
    name = type(loss).__name__
    if isinstance(loss, SCALAR) and not is_scalar:
        _refuse("loss", f"{name} trains scores of a scalar head: build the model with into_scoring_model()")
    if is_scalar and not isinstance(loss, SCALAR):
        _refuse("loss", f"{name} trains log-probabilities of tokens: build the model without into_scoring_model()")
    expected = 2 if isinstance(loss, PAIRED) else 1
    if len(sides) != expected:
        meaning = "a preferred and a rejected one" if expected == 2 else "one"
        _refuse("samples", f"{name} got {len(sides)} samples: give {meaning}")
    for index, side in enumerate(sides):
        if len(side.rows_W) == 0 and not isinstance(loss, Tangents):
            _refuse("weights", f"sample {index} of {side.num_tokens} tokens weights none of them: {name} needs one")
    for field in loss.__struct_fields__:
        value = getattr(loss, field)
        if isinstance(value, str):
            continue
        if np.ndim(value) == 0:
            _check_number(field, value)
        else:
            _check_list(field, value, len(sides[0].rows_W))


def _check_number(field: str, number: float) -> None:
    if not math.isfinite(number):
        _refuse(field, f"{field} is {number}: give a finite number")
    if field in _NOT_NEGATIVE and number < 0:
        _refuse(field, f"{field} is {number:g}: give 0 or more")


def _check_list(field: str, values: Sequence[float], num_weighted: int) -> None:
    numbers = vector(field, values)
    length, kind = len(numbers), "values"
    if field == "tangents":
        length, kind = int(np.count_nonzero(numbers)), "values other than 0"
    if length != num_weighted:
        _refuse(field, f"{field} has {length} {kind} for {num_weighted} weighted tokens: Vector doesn't match mask")


def _refuse(field: str, message: str) -> NoReturn:
    raise InvalidRequestError(message, field=field)


def evaluate(loss: Evaluable, values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The loss as a differentiable scalar in the dtype of the values. `values` and `weights` hold a [W] per side."""
    sides = [values_W.double() for values_W in values]
    values_W = sides[0]
    match loss:
        case LanguageModelling() | Tangents():
            total = -(weights[0].double() * values_W).sum()
        case Ppo() | Grpo() | Gspo():
            total = _policy(loss, values_W)
        case Dpo():
            margin = sides[0].sum() - sides[1].sum() - (loss.reference_positive - loss.reference_negative)
            total = -logsigmoid(loss.beta * margin)
        case Ranking():
            total = -logsigmoid(sides[0].sum() - sides[1].sum())
        case Mse():
            total = (values_W - loss.target).square().sum()
        case MsePerToken() | TrustRegionMse():
            total = _squares(loss, values_W)
        case KnownDerivative():
            total = loss.value + loss.derivative * (values_W - values_W.detach()).sum()
    return total.to(values[0].dtype)


def gradient(loss: Evaluable, values: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(loss, dloss/dvalues of each side), on the device and in the dtype of the values."""
    with torch.enable_grad():
        leaves = [values_W.detach().requires_grad_() for values_W in values]
        total = evaluate(loss, leaves, weights)
    return total.detach(), torch.autograd.grad(total, leaves)


def pair_tangents(loss: Dpo | Ranking, positive: float, negative: float) -> tuple[KnownDerivative, KnownDerivative]:
    """The two sides of a pair as losses of their own, from the summed log-probabilities (or the scores) of both.

    Trained one after the other on unchanged weights they give the pair's gradient, and their values its loss.
    """
    sums = [torch.tensor([value], dtype=torch.float64) for value in (positive, negative)]
    total, (up, down) = gradient(loss, sums, sums)
    return KnownDerivative(float(total), float(up)), KnownDerivative(0.0, float(down))


def _policy(loss: Ppo | Grpo | Gspo, logprobs_W: Tensor) -> Tensor:
    log_ratio_W = logprobs_W - _constant(loss.trajectory_logprobs, logprobs_W)
    if isinstance(loss, Gspo):
        log_ratio = log_ratio_W.mean()
        advantage = torch.full_like(log_ratio, loss.advantage)
        total = len(logprobs_W) * _surrogate(log_ratio, advantage, loss.left_clip, loss.right_clip)
    else:
        advantages_W = _constant(loss.advantages, logprobs_W)
        total = _surrogate(log_ratio_W, advantages_W, loss.clip_range, loss.clip_range).sum()
    if isinstance(loss, Ppo) or loss.kl_beta == 0:
        return total
    drift_W = _constant(loss.reference_logprobs, logprobs_W) - logprobs_W
    return total + loss.kl_beta * (torch.expm1(drift_W) - drift_W).sum()


def _surrogate(log_ratio: Tensor, advantage: Tensor, left: float, right: float) -> Tensor:
    """-min(r A, clip(r, 1 - left, 1 + right) A), written so that a ratio that is not used cannot overflow."""
    excess = torch.expm1(log_ratio.detach())
    is_up, is_down = advantage > 0, advantage < 0
    is_clipped = is_up & (excess > right) | is_down & (excess < -left)
    is_unused = is_clipped | ~(is_up | is_down | log_ratio.isnan())  # NaN must show even where the advantage is 0
    ratio = log_ratio.masked_fill(is_unused, 0.0).exp()
    bound = torch.where(is_up, torch.full_like(ratio, 1 + right), 1 - left)  # two plain numbers would be fp32
    return -torch.where(is_clipped, bound, ratio) * advantage


def _squares(loss: MsePerToken | TrustRegionMse, scores_W: Tensor) -> Tensor:
    targets_W = _constant(loss.targets, scores_W)
    squares_W = (scores_W - targets_W).square()
    if isinstance(loss, TrustRegionMse):
        centers_W = _constant(loss.clip_centers, scores_W)
        near_W = centers_W + (scores_W - centers_W).clamp(-loss.clip_range, loss.clip_range)
        squares_W = torch.maximum(squares_W, (near_W - targets_W).square())
    return squares_W.sum()


def _constant(numbers: Sequence[float], like: Tensor) -> Tensor:
    """The numbers beside `like`; from pinned memory, because the host waits for other copies to end."""
    row = torch.tensor(numbers, dtype=like.dtype)
    if like.is_cuda:
        row = row.pin_memory()
    return row.to(like.device, non_blocking=True)
