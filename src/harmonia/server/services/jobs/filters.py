"""Which jobs are wanted, as a condition of the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, not_, or_, select, true

from harmonia.server.db.jobs import Job, JobArtifact
from harmonia.server.db.people import User
from harmonia.server.db.projects import Project
from harmonia.server.db.recipes import Recipe
from harmonia.server.services.access import by_id_or_key

CUSTOM = "CUSTOM"
"""The kind of every job that runs a recipe, which all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWish:
    """What holds of a job; None: never mind. Entities are named by id or key, people by e-mail too."""

    project: str | None = None
    kinds: Sequence[str] | None = None
    statuses: Sequence[str] | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    recipes: Sequence[str] | None = None
    not_recipe: str | None = None
    artifact_kinds: Sequence[str] | None = None
    creators: Sequence[str] | None = None
    projects: Sequence[str] | None = None
    name: str | None = None
    """In the name, whatever the case of letters."""
    exact_name: str | None = None
    all_of: Sequence[JobWish] = field(default=())
    any_of: Sequence[JobWish] | None = None
    none_of: Sequence[JobWish] = field(default=())


def condition(wish: JobWish) -> ColumnElement[bool]:
    """The same as a condition on `Job`."""
    parts = [true(), *_of_job(wish), *_of_others(wish)]
    parts += [condition(inner) for inner in wish.all_of]
    parts += [not_(condition(inner)) for inner in wish.none_of]
    if wish.any_of is not None:
        parts.append(or_(*(condition(inner) for inner in wish.any_of)) if wish.any_of else not_(true()))
    return and_(*parts)


def _of_job(wish: JobWish) -> list[ColumnElement[bool]]:
    parts: list[ColumnElement[bool]] = []
    if wish.kinds is not None and CUSTOM not in wish.kinds:
        parts.append(not_(true()))
    if wish.statuses is not None:
        parts.append(Job.status.in_(wish.statuses))
    if wish.since_ms is not None:
        parts.append(Job.created_at >= wish.since_ms)
    if wish.until_ms is not None:
        parts.append(Job.created_at <= wish.until_ms)
    if wish.name is not None:
        parts.append(Job.name.icontains(wish.name, autoescape=True))
    if wish.exact_name is not None:
        parts.append(Job.name == wish.exact_name)
    return parts


def _of_others(wish: JobWish) -> list[ColumnElement[bool]]:
    parts: list[ColumnElement[bool]] = []
    if wish.recipes is not None:
        parts.append(or_(not_(true()), *map(_runs, wish.recipes)))
    if wish.not_recipe is not None:
        parts.append(not_(_runs(wish.not_recipe)))
    if wish.artifact_kinds is not None:
        made = select(JobArtifact.job_id).where(JobArtifact.kind.in_(wish.artifact_kinds))
        parts.append(Job.id.in_(made))
    if wish.creators is not None:
        users = select(User.id).where(or_(not_(true()), *(by_id_or_key(User.id, User.email, x) for x in wish.creators)))
        parts.append(Job.created_by.in_(users))
    wanted = wish.projects if wish.project is None else [wish.project]
    if wanted is not None:
        projects = select(Project.id).where(
            or_(not_(true()), *(by_id_or_key(Project.id, Project.key, x) for x in wanted))
        )
        parts.append(Job.project_id.in_(projects))
    return parts


def _runs(recipe: str) -> ColumnElement[bool]:
    # The key that it had when the job was made, or the one that it has now.
    now = select(Recipe.id).where(Recipe.key == recipe)
    return or_(by_id_or_key(Job.recipe_id, Job.recipe_key, recipe), Job.recipe_id.in_(now))
