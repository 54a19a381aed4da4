"""Which jobs are wanted."""

from __future__ import annotations

from enum import Enum

import strawberry

from harmonia.server.graphql.artifacts import JobArtifactKind
from harmonia.server.graphql.paging import IdOrKeyCondition, TextCondition, TimeRange, moments_of
from harmonia.server.graphql.scalars import IdOrKey
from harmonia.server.services.jobs.filters import JobWish


@strawberry.enum
class JobKind(Enum):
    """Who drives a job."""

    CUSTOM = "CUSTOM"
    INTERACTIVE = "INTERACTIVE"


@strawberry.enum
class JobStatus(Enum):
    """How a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


@strawberry.input
class JobArtifactFilter:
    """Only jobs that made something of these kinds."""

    kinds: list[JobArtifactKind]


@strawberry.input
class JobFilterExpression:
    """What holds of a job, in any combination."""

    and_: list[JobFilterExpression] | None = strawberry.field(name="and", default=None)
    or_: list[JobFilterExpression] | None = strawberry.field(name="or", default=None)
    not_: JobFilterExpression | None = strawberry.field(name="not", default=None)
    kind: JobKind | None = None
    status: JobStatus | None = None
    timerange: TimeRange | None = None
    created_by: IdOrKeyCondition | None = None
    custom_recipe: IdOrKeyCondition | None = None
    artifact: JobArtifactKind | None = None
    name: TextCondition | None = None
    project: IdOrKeyCondition | None = None

    @property
    def wish(self) -> JobWish:
        """For the service."""
        since, until = moments_of(self.timerange)
        excluded = [
            JobWish(creators=_excluded(self.created_by)),
            JobWish(recipes=_excluded(self.custom_recipe)),
            JobWish(projects=_excluded(self.project)),
        ]
        nots = [wish for wish in excluded if wish != JobWish()]
        return JobWish(
            kinds=None if self.kind is None else [self.kind.value],
            statuses=None if self.status is None else [self.status.value],
            since_ms=since,
            until_ms=until,
            recipes=_included(self.custom_recipe),
            artifact_kinds=None if self.artifact is None else [self.artifact.value],
            creators=_included(self.created_by),
            projects=_included(self.project),
            name=None if self.name is None else self.name.contains,
            exact_name=None if self.name is None else self.name.eq,
            all_of=[inner.wish for inner in self.and_ or []],
            any_of=None if self.or_ is None else [inner.wish for inner in self.or_],
            none_of=nots if self.not_ is None else [*nots, self.not_.wish],
        )


@strawberry.input
class ListJobsFilterInput:
    """Which jobs are wanted; everything that is given must hold."""

    project: IdOrKey | None = None
    kind: list[JobKind] | None = None
    status: list[JobStatus] | None = None
    timerange: TimeRange | None = None
    custom_recipes: list[IdOrKey] | None = None
    artifacts: JobArtifactFilter | None = None
    created_by: IdOrKey | None = None
    name: str | None = None
    advanced_filter: JobFilterExpression | None = None

    @property
    def wish(self) -> JobWish:
        """For the service."""
        since, until = moments_of(self.timerange)
        return JobWish(
            project=self.project,
            kinds=None if self.kind is None else [kind.value for kind in self.kind],
            statuses=None if self.status is None else [status.value for status in self.status],
            since_ms=since,
            until_ms=until,
            recipes=self.custom_recipes,
            artifact_kinds=None if self.artifacts is None else [kind.value for kind in self.artifacts.kinds],
            creators=None if self.created_by is None else [self.created_by],
            name=self.name,
            all_of=[] if self.advanced_filter is None else [self.advanced_filter.wish],
        )


def _included(condition: IdOrKeyCondition | None) -> list[str] | None:
    """None: all."""
    if condition is None or (condition.eq is None and condition.in_ is None):
        return None
    if condition.eq is None:
        return list(condition.in_ or [])
    return [condition.eq] if condition.in_ is None or condition.eq in condition.in_ else []


def _excluded(condition: IdOrKeyCondition | None) -> list[str] | None:
    return None if condition is None or condition.neq is None else [condition.neq]
