"""Looking for jobs and for what they made."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job, JobArtifact
from harmonia.server.db.people import User
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, by_id_or_key, require_in_project, visible_projects
from harmonia.server.services.jobs.filters import JobWish
from harmonia.server.services.jobs.recipes import RecipeInfo, Recipes

DEFAULT_SIZE, MAX_SIZE = 100, 1000
"""Artifacts of one answer."""
_READ = "project:read"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactWish:
    """Which artifacts are wanted, and how many of them. text: in the name, whatever the case of letters."""

    kinds: Sequence[str] | None = None
    job_id: uuid.UUID | None = None
    text: str | None = None
    limit: int = DEFAULT_SIZE
    offset: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_SIZE:
            raise InvalidRequestError(f"limit: must be from 1 to {MAX_SIZE}, got {self.limit}", field="limit")
        if self.offset < 0:
            raise InvalidRequestError(f"offset: must be at least 0, got {self.offset}", field="offset")


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What jobs can be filtered by."""

    users: list[User]
    recipes: list[tuple[RecipeInfo, str]]
    """Each with the key of a project in which it was run."""
    projects: list[Project]


def words_of_job(project: str, text: str) -> JobWish:
    """The jobs that a search finds: by name, by the key of their recipe, and by who made them."""
    ways = [JobWish(name=text), JobWish(recipes=[text]), JobWish(creators=[text.lower()])]
    return JobWish(project=project, any_of=ways)


def checked_words(text: str) -> str:
    """`InvalidRequestError` for a search that names nothing."""
    words = text.strip()
    if not words:
        raise InvalidRequestError("query: give some characters of a name", field="query")
    return words


class JobSearch:
    """Reads what the caller may see with `project:read`."""

    def __init__(self, database: Database, recipes: Recipes) -> None:
        self._database = database
        self._recipes = recipes

    async def artifacts(self, caller: Caller, project: str, wish: ArtifactWish) -> list[JobArtifact]:
        """What the jobs of a project made, the newest first."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, _READ)
            query = (
                select(JobArtifact)
                .join(Job, Job.id == JobArtifact.job_id)
                .where(Job.project_id == access.project_id, Job.deleted_at.is_(None))
            )
            if wish.kinds is not None:
                query = query.where(JobArtifact.kind.in_(wish.kinds))
            if wish.job_id is not None:
                query = query.where(Job.id == wish.job_id)
            if wish.text is not None:
                query = query.where(JobArtifact.name.icontains(wish.text, autoescape=True))
            query = query.order_by(JobArtifact.created_at.desc(), JobArtifact.id.desc())
            return list((await session.execute(query.limit(wish.limit).offset(wish.offset))).scalars())

    async def options(self, caller: Caller, project: str | None = None) -> JobOptions:
        """Who ran which recipes where: in one project, or in all that the caller sees."""
        async with self._database.read() as session:
            if project is not None:
                await require_in_project(session, caller, project, _READ)
            seen = select(Job).where(Job.deleted_at.is_(None), Job.project_id.in_(visible_projects(caller, _READ)))
            if project is not None:
                named = select(Project.id).where(by_id_or_key(Project.id, Project.key, project))
                seen = seen.where(Job.project_id.in_(named))
            pairs = seen.with_only_columns(Job.recipe_id, Job.project_id).distinct()
            found = (await session.execute(pairs)).all()
            users = select(User).where(User.id.in_(seen.with_only_columns(Job.created_by))).order_by(User.email)
            people = list((await session.execute(users)).scalars())
            places = select(Project).where(Project.id.in_({row.project_id for row in found})).order_by(Project.key)
            projects = list((await session.execute(places)).scalars())
        keys = {row.id: row.key for row in projects}
        run_in = {row.recipe_id: keys[row.project_id] for row in found if row.recipe_id is not None}
        recipes = await self._recipes.known(list(run_in))
        named_recipes = sorted(recipes.values(), key=lambda info: info.name)
        return JobOptions(people, [(info, run_in[info.id]) for info in named_recipes], projects)
