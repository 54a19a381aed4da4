"""What the scores of an A/B test say: figures of each variant, and whether the best one is better than chance."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from harmonia.server.db.abtests import AbCampaign
from harmonia.server.db.interactions import Completion
from harmonia.server.db.metrics import Comparison, DirectScore, Metric
from harmonia.server.services.abtests.significance import (
    Interval,
    Sample,
    mean_interval,
    proportion_interval,
    proportions,
    sign_test,
    welch,
)
from harmonia.server.services.metrics import BOOL, LOWER_IS_BETTER

DIRECT, COMPARISON = "DIRECT", "COMPARISON"
MIN_SCORES = 30
"""Scores (or comparisons) that each variant needs before a test is decided: fewer make t-tests of skewed scores, such
as durations, lie, and let a lucky start end a test."""
ALPHA = 0.05
"""A test ends below this p-value, at one of the few moments when it is looked at."""


@dataclass(slots=True)
class Duel:
    """One variant against another, seen by the first."""

    wins: int = 0
    losses: int = 0
    ties_good: int = 0
    ties_bad: int = 0

    @property
    def scores(self) -> int:
        """How often they were compared."""
        return self.wins + self.losses + self.ties_good + self.ties_bad


@dataclass(frozen=True, slots=True)
class VariantReport:
    """Scores of one variant. mean: of its scores, or its share of wins among comparisons that were no ties."""

    service_id: uuid.UUID
    scores: int
    mean: float | None
    interval: Interval | None
    duels: dict[uuid.UUID, Duel] = field(default_factory=dict)
    """By the other variant; of tests by comparison only."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a test says. p_value: that its best variant is no better than the others, for more than two variants
    multiplied by the number of others (Bonferroni); None while there is too little to compute it."""

    variants: list[VariantReport]
    p_value: float | None = None
    best: uuid.UUID | None = None

    @property
    def has_enough(self) -> bool:
        """Whether every variant has the scores that a decision needs."""
        return all(variant.scores >= MIN_SCORES for variant in self.variants)

    @property
    def is_decided(self) -> bool:
        """Whether the best variant is better than chance."""
        return self.has_enough and self.p_value is not None and self.p_value < ALPHA


async def report(session: AsyncSession, campaign: AbCampaign, metric: Metric, services: Sequence[uuid.UUID]) -> Report:
    """What a test says now. services: its variants, in order."""
    if campaign.score_type == COMPARISON:
        return _compared(await _duels(session, campaign, services), services)
    samples = await _samples(session, campaign)
    return _scored(samples, metric, services)


async def _samples(session: AsyncSession, campaign: AbCampaign) -> dict[uuid.UUID, Sample]:
    """Scores of completions that the test chose the model for."""
    mean = func.avg(DirectScore.value).over(partition_by=Completion.model_service_id)
    scored = (
        select(Completion.model_service_id.label("service_id"), DirectScore.value.label("value"), mean.label("mean"))
        .join(DirectScore, DirectScore.completion_id == Completion.id)
        .where(Completion.ab_campaign_id == campaign.id, DirectScore.metric_id == campaign.metric_id)
        .subquery()
    )
    deviation = scored.c.value - scored.c.mean
    query = select(
        scored.c.service_id, func.count(), func.avg(scored.c.value), func.sum(deviation * deviation)
    ).group_by(scored.c.service_id)
    rows = await session.execute(query)
    return {service_id: Sample(count, float(mean), float(squares)) for service_id, count, mean, squares in rows}


async def _duels(
    session: AsyncSession, campaign: AbCampaign, services: Sequence[uuid.UUID]
) -> dict[tuple[uuid.UUID, uuid.UUID], Duel]:
    """Comparisons of two variants since the test began, whoever chose the models."""
    preferred, other = aliased(Completion), aliased(Completion)
    query = (
        select(preferred.model_service_id, other.model_service_id, Comparison.tie, func.count())
        .join(preferred, preferred.id == Comparison.preferred_id)
        .join(other, other.id == Comparison.other_id)
        .where(
            Comparison.metric_id == campaign.metric_id,
            Comparison.created_at >= campaign.created_at,
            preferred.model_service_id.in_(services),
            other.model_service_id.in_(services),
            preferred.model_service_id != other.model_service_id,
        )
        .group_by(preferred.model_service_id, other.model_service_id, Comparison.tie)
    )
    if campaign.ended_at is not None:
        query = query.where(Comparison.created_at <= campaign.ended_at)
    duels: dict[tuple[uuid.UUID, uuid.UUID], Duel] = defaultdict(Duel)
    for winner, loser, tie, count in await session.execute(query):
        assert winner is not None
        assert loser is not None
        ahead, behind = duels[winner, loser], duels[loser, winner]
        if tie is None:
            ahead.wins += count
            behind.losses += count
        for duel in (ahead, behind):
            duel.ties_good += count if tie == "good" else 0
            duel.ties_bad += count if tie == "bad" else 0
    return duels


def _scored(samples: Mapping[uuid.UUID, Sample], metric: Metric, services: Sequence[uuid.UUID]) -> Report:
    variants = []
    for service_id in services:
        sample = samples.get(service_id)
        if sample is None:
            variants.append(VariantReport(service_id, 0, None, None))
            continue
        interval = _interval(sample, metric)
        variants.append(VariantReport(service_id, sample.count, sample.mean, interval))
    if any(service_id not in samples or samples[service_id].count < 2 for service_id in services):
        return Report(variants)
    sign = -1 if metric.scoring_type == LOWER_IS_BETTER else 1
    best = max(services, key=lambda service_id: sign * samples[service_id].mean)

    def against(other: uuid.UUID) -> float:
        ours, theirs = samples[best], samples[other]
        if metric.kind == BOOL:
            return proportions(_successes(ours), ours.count, _successes(theirs), theirs.count)
        return welch(ours, theirs)

    return Report(variants, _worst(best, services, against), best)


def _compared(duels: Mapping[tuple[uuid.UUID, uuid.UUID], Duel], services: Sequence[uuid.UUID]) -> Report:
    variants = []
    for service_id in services:
        own = {other: duels.get((service_id, other), Duel()) for other in services if other != service_id}
        wins, decided = sum(duel.wins for duel in own.values()), sum(duel.wins + duel.losses for duel in own.values())
        scores = sum(duel.scores for duel in own.values())
        mean = wins / decided if decided else None
        variants.append(VariantReport(service_id, scores, mean, proportion_interval(wins, decided), own))
    shares = {variant.service_id: variant.mean for variant in variants if variant.mean is not None}
    if len(shares) < len(services):
        return Report(variants)
    best = max(services, key=lambda service_id: shares[service_id])
    against = {variant.service_id: variant.duels for variant in variants}[best]
    p_value = _worst(best, services, lambda other: sign_test(against[other].wins, against[other].losses))
    # Beaten by one of the others, the most wins in all are no victory.
    beaten = any(duel.wins < duel.losses for duel in against.values())
    return replace(Report(variants, p_value, best), p_value=1.0) if beaten else Report(variants, p_value, best)


def _worst(best: uuid.UUID, services: Sequence[uuid.UUID], against: Callable[[uuid.UUID], float]) -> float:
    others = [service_id for service_id in services if service_id != best]
    return min(1.0, len(others) * max(against(other) for other in others))


def _interval(sample: Sample, metric: Metric) -> Interval | None:
    if metric.kind == BOOL:
        return proportion_interval(_successes(sample), sample.count)
    return mean_interval(sample)


def _successes(sample: Sample) -> int:
    return round(sample.mean * sample.count)
