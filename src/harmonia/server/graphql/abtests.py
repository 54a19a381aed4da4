"""A/B tests."""

from __future__ import annotations

import uuid
from enum import Enum

import strawberry

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.entity_filters import AbCampaignFilter, AbcampaignStatus
from harmonia.server.graphql.metrics import Metric
from harmonia.server.graphql.models import ModelService
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.scalars import IdOrKey, Key, Timestamp
from harmonia.server.services.abtests.abtests import CampaignInfo, NewCampaign
from harmonia.server.services.abtests.report import Duel, VariantReport
from harmonia.server.services.abtests.significance import Interval as Bounds


@strawberry.enum
class ScoreType(Enum):
    """Values of single completions, or comparisons of two."""

    DIRECT = "DIRECT"
    COMPARISON = "COMPARISON"


@strawberry.type
class Interval:
    """Where a mean lies with 95 % confidence, and the mean."""

    start: float
    middle: float
    end: float

    @classmethod
    def of(cls, bounds: Bounds) -> Interval:
        """From what was computed."""
        return cls(start=bounds.start, middle=bounds.middle, end=bounds.end)


@strawberry.type
class AbVariantReportComparison:
    """One model against another."""

    variant: ModelService
    scores: int
    wins: int
    losses: int
    ties_good: int
    ties_bad: int

    @classmethod
    def of(cls, other: ModelService, duel: Duel) -> AbVariantReportComparison:
        """From what was counted. other: the opponent."""
        return cls(
            variant=other,
            scores=duel.scores,
            wins=duel.wins,
            losses=duel.losses,
            ties_good=duel.ties_good,
            ties_bad=duel.ties_bad,
        )


@strawberry.type
class AbVariantReport:
    """How one model does. mean: of its scores, or its share of wins. comparisons: only of tests by comparison."""

    variant: ModelService
    interval: Interval | None
    mean: float | None
    scores: int
    comparisons: list[AbVariantReportComparison] | None

    @classmethod
    def of(cls, found: VariantReport, services: dict[uuid.UUID, ModelService]) -> AbVariantReport:
        """From what was computed."""
        duels = [AbVariantReportComparison.of(services[other], duel) for other, duel in found.duels.items()]
        return cls(
            variant=services[found.service_id],
            interval=None if found.interval is None else Interval.of(found.interval),
            mean=found.mean,
            scores=found.scores,
            comparisons=duels or None,
        )


@strawberry.type
class AbReport:
    """What the scores say. pValue: that the best model is no better than the others."""

    p_value: float | None
    variants: list[AbVariantReport]


@strawberry.type
class Abcampaign:
    """A test of models of one project against each other."""

    info: strawberry.Private[CampaignInfo]
    id: uuid.UUID
    key: str
    name: str | None
    metric: Metric | None
    project: Project | None
    auto_deploy: bool
    status: AbcampaignStatus
    score_type: ScoreType
    traffic_split: float
    begin_date: Timestamp
    end_date: Timestamp | None
    created_at: Timestamp
    scores: int
    has_enough_scores: bool

    @classmethod
    def of(cls, info: CampaignInfo) -> Abcampaign:
        """From its rows."""
        row = info.row
        return cls(
            info=info,
            id=row.id,
            key=row.key,
            name=row.name,
            metric=Metric.of(info.metric),
            project=Project.of(info.project),
            auto_deploy=row.auto_deploy,
            status=AbcampaignStatus(row.status),
            score_type=ScoreType(row.score_type),
            traffic_split=row.traffic_split,
            begin_date=Timestamp(row.created_at),
            end_date=None if row.ended_at is None else Timestamp(row.ended_at),
            created_at=Timestamp(row.created_at),
            scores=row.num_scores,
            has_enough_scores=row.has_enough,
        )

    @strawberry.field
    async def models(self, info: Info) -> list[ModelService]:
        """Those that take part."""
        return list((await _services(info, self.info)).values())

    @strawberry.field
    async def report(self, info: Info) -> AbReport:
        """What the scores say until now."""
        services = await _services(info, self.info)
        found = await info.context.services.abtests.report(self.info)
        variants = [AbVariantReport.of(variant, services) for variant in found.variants]
        return AbReport(p_value=found.p_value, variants=variants)


async def _services(info: Info, campaign: CampaignInfo) -> dict[uuid.UUID, ModelService]:
    ids = [service.id for service in campaign.services]
    bound = await info.context.services.deployments.by_id(ids)
    return {service_id: ModelService.of(bound[service_id]) for service_id in ids}


@strawberry.input
class AbcampaignCreate:
    """A new test. trafficSplit: share from 0 to 1 of the requests without a model that take part."""

    key: Key
    metric: IdOrKey
    project: IdOrKey
    model_services: list[IdOrKey]
    auto_deploy: bool
    traffic_split: float
    name: str | None = None
    score_type: ScoreType = ScoreType.DIRECT


@strawberry.type
class AbTestQuery:
    """A/B tests."""

    @strawberry.field
    async def ab_campaigns(self, info: Info, filter: AbCampaignFilter | None = None) -> list[Abcampaign]:
        """Those of the projects that the caller may read, newest first."""
        wish = (filter or AbCampaignFilter()).wish()
        return [Abcampaign.of(item) for item in await info.context.services.abtests.all(info.context.caller, wish)]

    @strawberry.field
    async def ab_campaign(self, info: Info, id_or_key: IdOrKey) -> Abcampaign | None:
        """One of them."""
        found = await info.context.services.abtests.find(info.context.caller, id_or_key)
        return None if found is None else Abcampaign.of(found)


@strawberry.type
class AbTestMutation:
    """Beginning and ending A/B tests."""

    @strawberry.mutation
    async def create_ab_campaign(self, info: Info, input: AbcampaignCreate) -> Abcampaign:
        """Begin a test."""
        new = NewCampaign(
            key=input.key,
            name=input.name,
            project=input.project,
            metric=input.metric,
            models=list(input.model_services),
            traffic_split=input.traffic_split,
            auto_deploy=input.auto_deploy,
            score_type=input.score_type.value,
        )
        return Abcampaign.of(await info.context.services.abtests.create(info.context.caller, new))

    @strawberry.mutation
    async def cancel_ab_campaign(self, info: Info, input: IdOrKey) -> str:
        """End a test without a winner; answers its id."""
        row = await info.context.services.abtests.cancel(info.context.caller, input)
        return str(row.id)
