"""Losses worked out here instead of in the engine: how to train anything through `train_tangents`.

A tangent is minus the derivative of the loss by the log-probability of a token. The engine takes the mean over the
`train_*` calls since the last step, and each tangent call is one: a pair trained here counts as two samples, in
`train_dpo` as one.
"""

from __future__ import annotations

import asyncio
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmonia.client import StringThread, TokenizedThread, TrainingModel
from harmonia.errors import InvalidRequestError

Vector = NDArray[np.float64]
"""One number per weighted token, unless said otherwise."""


class Variant(TypedDict, total=False):
    """Further arguments of `train_grpo_tangents`."""

    use_sequence_lps: bool
    """One ratio for the whole sequence, as in GSPO. False."""


async def train_sft_tangents(model: TrainingModel, thread: StringThread) -> dict[str, float]:
    """`train_language_modelling`; returns `policy/loss`, minus the summed log-probabilities over the summed weights,
    and `policy/num_tokens`, the number of weighted tokens."""
    sample = await model.tokenize_thread(thread)
    logprobs = await model.logprobs_per_token(sample)
    _, _, weights = await model.serialize_tokenized_thread(sample)
    await _train(model, sample, [weight for weight in weights if weight != 0])
    return {"policy/loss": -sum(logprobs) / sum(weights), "policy/num_tokens": float(len(logprobs))}


async def train_dpo_tangents(
    model: TrainingModel,
    pos: StringThread,
    neg: StringThread,
    ref_logprobs_pos: float,
    ref_logprobs_neg: float,
    beta: float,
) -> dict[str, float]:
    """`train_dpo`; returns the pair's `policy/` chosen_rewards, rejected_rewards, reward_accuracy, reward_margin and
    loss. Weights choose tokens; their size does not count."""
    chosen, rejected = await asyncio.gather(model.tokenize_thread(pos), model.tokenize_thread(neg))
    logprobs = await asyncio.gather(model.logprobs_per_token(chosen), model.logprobs_per_token(rejected))
    reward_pos = beta * (sum(logprobs[0]) - ref_logprobs_pos)
    reward_neg = beta * (sum(logprobs[1]) - ref_logprobs_neg)
    loss = float(np.logaddexp(0.0, reward_neg - reward_pos))
    slope = beta * float(-np.expm1(-loss))  # 1 - sigmoid(margin), as loss = -log sigmoid(margin)
    sides = [(chosen, np.full(len(logprobs[0]), slope)), (rejected, np.full(len(logprobs[1]), -slope))]
    # The longer side first: if it is refused, neither counts.
    for sample, tangents in sorted(sides, key=lambda side: len(side[0].token_ids), reverse=True):
        await _train(model, sample, tangents)
    return {
        "policy/chosen_rewards": reward_pos,
        "policy/rejected_rewards": reward_neg,
        "policy/reward_accuracy": float(reward_pos > reward_neg),
        "policy/reward_margin": reward_pos - reward_neg,
        "policy/loss": loss,
    }


async def train_grpo_tangents(
    model: TrainingModel,
    sample: TokenizedThread,
    trajectory_logprobs: list[float],
    ref_logprobs: list[float],
    advantages: list[float],
    clip_range: float,
    kl_beta: float,
    **variant: Unpack[Variant],
) -> dict[str, float]:
    """`train_grpo`, or `train_gspo` with `use_sequence_lps=True`; returns the metrics of `grpo_loss`."""
    logprobs = await model.logprobs_per_token(sample)
    tangents, metrics = grpo_loss(
        logprobs, trajectory_logprobs, ref_logprobs, advantages, clip_range, kl_beta, **variant
    )
    await _train(model, sample, tangents)
    return metrics


def grpo_loss(
    logprobs: ArrayLike,
    trajectory_logprobs: ArrayLike,
    reference_logprobs: ArrayLike,
    advantages: ArrayLike,
    clip_range: float,
    kl_beta: float,
    use_sequence_lps: bool = False,
) -> tuple[Vector, dict[str, float]]:
    """Tangents of the clipped surrogate -min(r A, clip(r) A) + kl_beta (exp(d) - d - 1), d = reference - logprob.

    All lists have one entry per weighted token; a single advantage goes for all. r is exp(logprob - trajectory) of each
    token, or with `use_sequence_lps` of the sequence's mean. The divergence counts for clipped tokens too.
    Metrics: `policy/pg_clipfrac`, `policy/inner_kl_div` (half the mean square of logprob - trajectory), `policy/Dkl`.
    """
    now, sampled, reference = (_vector(values) for values in (logprobs, trajectory_logprobs, reference_logprobs))
    advantage = _vector(advantages)
    _check_lengths(len(now), sampled, reference, advantage)
    moved, drift = now - sampled, reference - now
    step = np.full_like(moved, moved.mean()) if use_sequence_lps else moved
    with np.errstate(over="ignore"):  # a ratio too large for a float is clipped, or shows as inf in the gradient
        is_clipped = (np.abs(np.expm1(step)) > clip_range) & (np.sign(advantage) == np.sign(step))
        ratio = np.exp(np.where(is_clipped | (advantage == 0), 0.0, step))
        excess = np.expm1(drift)
    tangents = np.where(is_clipped, 0.0, advantage * ratio)
    if kl_beta:
        tangents += kl_beta * excess
    return tangents, {
        "policy/pg_clipfrac": float(is_clipped.mean()),
        "policy/inner_kl_div": float(0.5 * np.square(moved).mean()),
        "policy/Dkl": float((excess - drift).mean()),
    }


async def _train(model: TrainingModel, sample: TokenizedThread, tangents: ArrayLike) -> None:
    """Add the gradient of one tangent per weighted token."""
    tokens, image_patches, weights = await model.serialize_tokenized_thread(sample)
    is_weighted = np.array(weights[1:]) != 0
    spread = np.zeros(len(is_weighted))
    spread[is_weighted] = tangents
    await model.train_tangents(tokens[:-1], image_patches, spread, tokens[1:])


def _vector(values: ArrayLike) -> Vector:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def _check_lengths(count: int, sampled: Vector, reference: Vector, advantage: Vector) -> None:
    lengths = {"trajectory_logprobs": len(sampled), "reference_logprobs": len(reference)}
    if len(advantage) != 1:
        lengths["advantages"] = len(advantage)
    for name, length in lengths.items():
        if length != count:
            raise InvalidRequestError(
                f"{name} has {length} entries for {count} weighted tokens: Vector doesn't match mask", field=name
            )
