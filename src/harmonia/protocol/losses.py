"""What a training call asks to minimise: plain data, evaluated by `harmonia.train.losses`.

A sample has W weighted tokens. Lists per token have W entries, in the order of the tokens. Log-probabilities are
natural, untempered, of the full vocabulary.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Divergence = Literal["forward_kl", "reverse_kl", "total_variation"]
"""How far a student's distribution q of the next token is from its teacher's p: sum of p log(p / q), sum of
q log(q / p), or half the sum of |p - q|."""


class _Loss(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class LanguageModelling(_Loss, frozen=True, kw_only=True):
    """-sum of weight * log-probability."""


class Ppo(_Loss, frozen=True, kw_only=True):
    """Clipped surrogate per token: -min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(logprob - trajectory logprob)."""

    trajectory_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    clip_range: float


class Grpo(_Loss, frozen=True, kw_only=True):
    """`Ppo` plus kl_beta * (exp(d) - d - 1) per token, d = reference logprob - logprob."""

    trajectory_logprobs: tuple[float, ...]
    reference_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    clip_range: float
    kl_beta: float


class Gspo(_Loss, frozen=True, kw_only=True):
    """W times the clipped surrogate of the whole sequence, whose ratio is exp(mean(logprob - trajectory logprob)).

    The window is [1 - left_clip, 1 + right_clip]; the divergence counts per token as in `Grpo`.
    """

    trajectory_logprobs: tuple[float, ...]
    reference_logprobs: tuple[float, ...]
    advantage: float
    left_clip: float
    right_clip: float
    kl_beta: float


class Dpo(_Loss, frozen=True, kw_only=True):
    """-log sigmoid(beta ((p - n) - (reference p - reference n))) over summed log-probabilities of a preferred and a
    rejected sample."""

    reference_positive: float
    reference_negative: float
    beta: float


class Ranking(_Loss, frozen=True, kw_only=True):
    """-log sigmoid(s_positive - s_negative) over the scores of the last tokens of two samples."""


class Mse(_Loss, frozen=True, kw_only=True):
    """(s - target)^2 of the last token's score."""

    target: float


class MsePerToken(_Loss, frozen=True, kw_only=True):
    """Sum over weighted tokens of (s - target)^2."""

    targets: tuple[float, ...]


class TrustRegionMse(_Loss, frozen=True, kw_only=True):
    """Sum over weighted tokens of max((s - t)^2, (c + clip(s - c, -clip_range, clip_range) - t)^2)."""

    targets: tuple[float, ...]
    clip_centers: tuple[float, ...]
    clip_range: float


class Tangents(_Loss, frozen=True, kw_only=True):
    """-sum of tangent * log-probability: any loss whose derivative the caller computed.

    One tangent per position of the sample's inputs; positions whose tangent is 0 are not weighted.
    """

    tangents: tuple[float, ...]


class Distillation(_Loss, frozen=True, kw_only=True):
    """Sum of weight * D(teacher || student) over the whole vocabulary at each weighted token, at temperature 1.

    Both distributions are over the ids that both models have: where vocabularies are padded to different sizes, what
    lies beyond the smaller one is no token, and has no probability.
    """

    teacher: str
    """Name of another instance on the same worker; one in training teaches with its weights of the moment."""
    divergence: Divergence = "forward_kl"


Loss = (
    LanguageModelling | Ppo | Grpo | Gspo | Dpo | Ranking | Mse | MsePerToken | TrustRegionMse | Tangents | Distillation
)
PAIRED = (Dpo, Ranking)
"""Losses over a preferred and a rejected sample."""
SCALAR = (Ranking, Mse, MsePerToken, TrustRegionMse)
"""Losses that read scores of a scalar head instead of log-probabilities."""
LAST_TOKEN = (Ranking, Mse)
"""Losses that read the last token of each sample, whatever its weights."""
