"""Interactions, the feedback on them, and the metrics that it is given in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import msgspec

from harmonia.errors import EntityNotFoundError
from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.call import REST, Call
from harmonia.sdk.conversation import Message, body_of
from harmonia.sdk.inputs import Chart, InteractionDetails, InteractionFilter, Order, Page, checked, timerange
from harmonia.sdk.operations import interactions, metrics, projects
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.interactions import Interaction, InteractionGroupPage, InteractionPage
from harmonia.sdk.operations.metrics import Metric, ProjectMetric, Timeseries, Trend

PAGE_SIZE = 100


class Recorded(msgspec.Struct, frozen=True):
    """An interaction that was recorded, with the feedback on it."""

    completion_id: str
    session_id: str
    feedback_ids: list[str]


class Scored(msgspec.Struct, frozen=True):
    """A score that was recorded."""

    feedback_id: str


class Outcome(msgspec.Struct, frozen=True):
    """A session's value that was recorded."""

    outcome_id: str


class Compared(msgspec.Struct, frozen=True):
    """A comparison that was recorded."""

    comparison_id: str


class AsyncInteractions(AsyncResource):
    """`adaptive.interactions`: what models were asked and answered."""

    async def create(
        self,
        messages: Sequence[Message],
        completion: str,
        project: str | None = None,
        **details: Unpack[InteractionDetails],
    ) -> Recorded:
        """Record an interaction that happened elsewhere."""
        checked(details, InteractionDetails, "the interaction")
        named = {("model_service" if name == "model" else name): value for name, value in details.items()}
        body = body_of(named, project=self._project(project), messages=messages, completion=completion)
        return await self._transport.fetch(Call("POST", f"{REST}/interactions", json=body), Recorded)

    async def get(self, completion_id: str, project: str | None = None) -> Interaction | None:
        """One of them, by the `completion_id` of the answer."""
        chosen = self._project(project)
        return await self._transport.execute(interactions.INTERACTION, project=chosen, id=completion_id)

    async def list(
        self,
        project: str | None = None,
        filters: InteractionFilter | None = None,
        page: Page | None = None,
        order: Sequence[Order] | None = None,
    ) -> InteractionPage:
        """Those of a project, the newest first unless `order` says else, and the first 100 unless `page` does."""
        newest: Sequence[Order] = [{"field": "created_at", "order": "DESC"}]
        asked = self._asked(project, filters, page)
        return await self._transport.execute(interactions.INTERACTIONS, order=order or newest, **asked)

    async def list_grouped(
        self,
        group_by: Literal["model", "prompt"],
        project: str | None = None,
        filters: InteractionFilter | None = None,
        page: Page | None = None,
        order: Sequence[Order] | None = None,
    ) -> InteractionGroupPage:
        """The same by model or by prompt, with statistics of their scores; `page` holds for groups and inside each."""
        by_name: Sequence[Order] = [{"field": "group", "order": "ASC"}]
        asked = self._asked(project, filters, page)
        return await self._transport.execute(
            interactions.INTERACTION_GROUPS, groupBy=group_by.upper(), order=order or by_name, **asked
        )

    def _asked(self, project: str | None, filters: InteractionFilter | None, page: Page | None) -> dict[str, Any]:
        wanted = checked(filters or {}, InteractionFilter, "filters")
        shown = checked(page or {"first": PAGE_SIZE}, Page, "page")
        return {"filter": {**wanted, "project": self._project(project)}, "page": shown}


class AsyncFeedback(AsyncResource):
    """`adaptive.feedback`: scores of answers, and preferences between them."""

    async def log_metric(
        self,
        value: bool | float,
        completion_id: str,
        feedback_key: str,
        user: str | None = None,
        details: str | None = None,
        reason: str | None = None,
    ) -> Scored:
        """Give an answer a score in the metric `feedback_key`.

        completion_id: of a choice, not the answer's `id`. user: id of whoever gives it, if not the caller.
        """
        body = given(
            completion_id=completion_id,
            metric=feedback_key,
            value=value,
            user_id=user,
            details=details,
            reason=reason,
        )
        return await self._transport.fetch(Call("POST", f"{REST}/feedback", json=body), Scored)

    async def log_outcome(
        self,
        value: bool | float,
        session_id: str,
        feedback_key: str,
        project: str | None = None,
        details: str | None = None,
        reason: str | None = None,
    ) -> Outcome:
        """Give a whole session a value in the metric `feedback_key`."""
        body = given(
            project=self._project(project),
            session_id=session_id,
            metric=feedback_key,
            value=value,
            details=details,
            reason=reason,
        )
        return await self._transport.fetch(Call("POST", f"{REST}/outcome", json=body), Outcome)

    async def log_preference(
        self,
        feedback_key: str,
        preferred_completion: str | Mapping[str, str],
        other_completion: str | Mapping[str, str],
        tied: Literal["good", "bad"] | None = None,
        messages: Sequence[Message] | None = None,
        user: str | None = None,
        project: str | None = None,
    ) -> Compared:
        """Say which of two answers to the same prompt is better, or that both are as good or as bad.

        Answers are named by `completion_id`, or given as `{"text": ..., "model": ...}` with the prompt in `messages`.
        """
        body = given(
            metric=feedback_key,
            preferred_completion=preferred_completion,
            other_completion=other_completion,
            tied=tied,
            messages=messages,
            user_id=user,
            project=self._project(project),
        )
        return await self._transport.fetch(Call("POST", f"{REST}/comparison", json=body), Compared)


class AsyncMetrics(AsyncResource):
    """`adaptive.metrics`: what feedback is given in."""

    async def create(
        self,
        key: str,
        kind: Literal["scalar", "bool"] = "scalar",
        scoring_type: Literal["higher_is_better", "lower_is_better"] = "higher_is_better",
        name: str | None = None,
        description: str | None = None,
        project: str | None = None,
    ) -> Metric:
        """A metric of a project; a `bool` takes 0, 1, True and False. Its name is its key unless given."""
        body = given(
            key=key, name=name or key, kind=kind.upper(), scoringType=scoring_type.upper(), description=description
        )
        chosen = self._project(project)
        return await self._transport.execute(metrics.CREATE_METRIC, project=chosen, input=body)

    async def get(self, key: str, project: str | None = None) -> Metric | None:
        """One of them."""
        chosen = self._project(project)
        return await self._transport.execute(metrics.METRIC, metricIdOrKey=key, projectIdOrKey=chosen)

    async def list(self, project: str | None = None) -> Sequence[ProjectMetric]:
        """Those of a project."""
        chosen = self._project(project)
        found = await self._transport.execute(projects.PROJECT_METRICS, idOrKey=chosen)
        if found is None:
            raise EntityNotFoundError(f"Project {chosen!r} does not exist", entity="project")
        return found.metrics

    async def list_all(self) -> Sequence[Metric]:
        """Those of all projects that the caller may read."""
        return await self._transport.execute(metrics.METRICS)

    async def timeseries(
        self,
        key: str,
        unit: Literal["hour", "day", "week", "month", "quarter", "year", "millennium"] = "day",
        chart: Chart | None = None,
        project: str | None = None,
    ) -> Sequence[Timeseries]:
        """The scores of a metric by time: one series, or one for each model if `by_model` of the chart says so.

        Nothing of a metric without scores, unless `since` says where to begin.
        """
        wanted = checked(chart or {}, Chart, "chart")
        since, until = wanted.pop("since", None), wanted.pop("until", None)
        body = given(interval=unit.upper(), timerange=timerange(since, until), **wanted)
        chosen = self._project(project)
        found = await self._transport.execute(metrics.TIMESERIES, idOrKey=chosen, metric=key, input=body)
        if found is None or found.metric is None:
            raise _no_metric(key, chosen)
        return found.metric.timeseries

    async def trend(
        self,
        key: str,
        since: int | str | None = None,
        until: int | str | None = None,
        aggregation: Literal["AVERAGE", "SUM", "COUNT"] = "AVERAGE",
        project: str | None = None,
    ) -> Trend | None:
        """How the scores of a metric moved against as long a time before; None if one of the two has none.

        Without moments: the last thirty days.
        """
        body = given(timerange=timerange(since, until), aggregation=aggregation)
        chosen = self._project(project)
        found = await self._transport.execute(metrics.TREND, idOrKey=chosen, metric=key, input=body)
        if found is None or found.metric is None:
            raise _no_metric(key, chosen)
        return found.metric.trend


def _no_metric(key: str, project: str) -> EntityNotFoundError:
    return EntityNotFoundError(f"Metric {key!r} does not exist in the project {project!r}", entity="metric")
