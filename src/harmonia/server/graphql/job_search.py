"""Looking for jobs and for what they made."""

from __future__ import annotations

import uuid

import strawberry

from harmonia.server.graphql.artifacts import JobArtifact, JobArtifactKind
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.jobs import Job
from harmonia.server.graphql.people import User
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.recipes import CustomRecipe
from harmonia.server.graphql.scalars import IdOrKey
from harmonia.server.services.jobs.search import DEFAULT_SIZE, ArtifactWish, checked_words, words_of_job
from harmonia.server.services.keyset import PageWish


@strawberry.input
class ArtifactFilter:
    """Which artifacts are wanted: of these kinds, of this job."""

    kinds: list[JobArtifactKind] | None = None
    job_id: uuid.UUID | None = None

    def wish(self, text: str | None = None, limit: int = DEFAULT_SIZE, offset: int = 0) -> ArtifactWish:
        """For services."""
        kinds = None if self.kinds is None else [kind.value for kind in self.kinds]
        return ArtifactWish(kinds=kinds, job_id=self.job_id, text=text, limit=limit, offset=offset)


@strawberry.input
class JobOptionsInput:
    """Of one project; null: of all that the caller sees."""

    project_id: IdOrKey | None = None


@strawberry.type
class JobOptionsResult:
    """What jobs can be filtered by: who made them, what they ran, and where."""

    users: list[User]
    recipes: list[CustomRecipe]
    projects: list[Project]


@strawberry.input
class SearchInput:
    """What is looked for, in any case of letters: a part of a name, the key of a recipe, an e-mail address."""

    query: str


@strawberry.type
class SearchResult:
    """What was found in a project, the newest first, at most 100 of each kind."""

    project: strawberry.Private[str]
    words: strawberry.Private[str]
    jobs: list[Job]

    @strawberry.field
    async def artifacts(self, info: Info, filter: ArtifactFilter | None = None) -> list[JobArtifact]:
        """What jobs made whose names hold the words."""
        wish = (filter or ArtifactFilter()).wish(text=self.words)
        rows = await info.context.services.job_search.artifacts(info.context.caller, self.project, wish)
        return [JobArtifact.of(row) for row in rows]


@strawberry.type
class JobSearchQuery:
    """Jobs, and what they made."""

    @strawberry.field
    async def job_options(self, info: Info, filter: JobOptionsInput) -> JobOptionsResult:
        """What jobs can be filtered by."""
        found = await info.context.services.job_search.options(info.context.caller, filter.project_id)
        return JobOptionsResult(
            users=[User.of(row) for row in found.users],
            recipes=[CustomRecipe.of(recipe, project) for recipe, project in found.recipes],
            projects=[Project.of(row) for row in found.projects],
        )

    @strawberry.field
    async def artifacts(
        self,
        info: Info,
        project: IdOrKey,
        filter: ArtifactFilter | None = None,
        limit: int = DEFAULT_SIZE,
        offset: int = 0,
    ) -> list[JobArtifact]:
        """What the jobs of a project made, the newest first; at most 1000 at a time."""
        wish = (filter or ArtifactFilter()).wish(limit=limit, offset=offset)
        rows = await info.context.services.job_search.artifacts(info.context.caller, project, wish)
        return [JobArtifact.of(row) for row in rows]

    @strawberry.field
    async def search_project(self, info: Info, input: SearchInput, project: IdOrKey) -> SearchResult:
        """The jobs of a project, and what they made, by words."""
        words = checked_words(input.query)
        wish = words_of_job(project, words)
        _, _, jobs = await info.context.services.jobs.all(info.context.caller, wish, PageWish(first=DEFAULT_SIZE), [])
        return SearchResult(project=project, words=words, jobs=[Job.of(item) for item in jobs])
