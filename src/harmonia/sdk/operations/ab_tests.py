"""A/B tests."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, optional, query
from harmonia.sdk.operations.metrics import Metric
from harmonia.sdk.operations.models import ProjectName, ServiceName


class AbTest(Result, frozen=True):
    """Models that share the traffic of a project: `status` WARMUP, IN_PROGRESS, DONE or CANCELLED.

    `score_type` is DIRECT or COMPARISON; `traffic_split`, 0 to 1, the share of the traffic that takes part.
    """

    id: str
    key: str
    status: str
    score_type: str
    traffic_split: float
    begin_date: int
    end_date: int | None
    metric: Metric | None
    project: ProjectName | None
    models: list[ServiceName]
    scores: int
    has_enough_scores: bool


class Interval(Result, frozen=True):
    """A confidence interval and its middle."""

    start: float
    middle: float
    end: float


class VariantComparison(Result, frozen=True):
    """One model against another."""

    variant: ServiceName
    scores: int
    wins: int
    losses: int
    ties_good: int
    ties_bad: int


class Variant(Result, frozen=True):
    """How one model does."""

    variant: ServiceName
    interval: Interval | None
    scores: int
    comparisons: list[VariantComparison] | None


class AbReport(Result, frozen=True):
    """How the models do, and whether their difference is more than chance."""

    p_value: float | None
    variants: list[Variant]


class ReportedAbTest(AbTest, frozen=True):
    """An A/B test with its report."""

    report: AbReport


AB_TESTS = query("abCampaigns", list[AbTest], filter="AbCampaignFilter!")
AB_TEST = optional("abCampaign", ReportedAbTest, idOrKey="IdOrKey!")
CREATE_AB_TEST = mutation("createAbCampaign", AbTest, input="AbcampaignCreate!")
CANCEL_AB_TEST = mutation("cancelAbCampaign", str, input="IdOrKey!")
