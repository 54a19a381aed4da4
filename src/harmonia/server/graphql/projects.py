"""Projects and the teams that may enter them."""

from __future__ import annotations

import uuid

import strawberry

from harmonia.server.db import projects as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.metrics import MetricFilter, MetricWithContext
from harmonia.server.graphql.models import ModelService
from harmonia.server.graphql.people import Role, Team
from harmonia.server.graphql.scalars import IdOrKey, Key, Timestamp
from harmonia.server.services.people.projects import NewProject, ShareWish


@strawberry.type
class Share:
    """A team that may enter a project."""

    team: Team
    role: Role
    is_owner: bool


@strawberry.type
class Project:
    """What holds models, data sets, graders, metrics, recipes and interactions together."""

    id: uuid.UUID
    key: str
    name: str
    description: str
    created_at: Timestamp

    @classmethod
    def of(cls, row: db.Project) -> Project:
        """From its row."""
        created_at = Timestamp(row.created_at)
        return cls(id=row.id, key=row.key, name=row.name, description=row.description, created_at=created_at)

    @strawberry.field
    async def permissions(self, info: Info) -> list[str]:
        """What the caller may do here."""
        return await info.context.services.projects.permissions(info.context.caller, self.id)

    @strawberry.field
    async def model_services(self, info: Info) -> list[ModelService]:
        """The models in it."""
        return [ModelService.of(bound) for bound in await info.context.services.deployments.of_project(self.id)]

    @strawberry.field
    async def metrics(self, info: Info, filter: MetricFilter | None = None) -> list[MetricWithContext]:
        """What its completions are measured by."""
        registry = info.context.services.metrics_registry
        wish = None if filter is None else filter.wish
        found = await registry.of_project(info.context.caller, self.id, wish)
        return [MetricWithContext.of(item) for item in found]

    @strawberry.field
    async def shares(self, info: Info) -> list[Share]:
        """The teams that may enter."""
        services = info.context.services
        found = await services.projects.shares(self.id)
        roles = await services.people.role_infos([item.role_id for item in found])
        return [
            Share(team=Team.of(item.team), role=Role.of(roles[item.role_id]), is_owner=item.is_owner) for item in found
        ]


@strawberry.input
class EmojiInput:
    """A picture made of one sign."""

    native: str


@strawberry.input
class ProjectMetadataInput:
    """The picture of a project."""

    emoji: EmojiInput | None = None
    image_key: str | None = None


@strawberry.input
class ProjectSettingsInput:
    """Settings of a project."""

    default_metric: str | None = None


@strawberry.input
class ProjectCreate:
    """A new project."""

    name: str
    team: IdOrKey | None = None
    key: Key | None = None
    description: str | None = None
    gradient_color: str | None = None
    metadata: ProjectMetadataInput | None = None
    settings: ProjectSettingsInput | None = None


@strawberry.input
class ProjectShareInput:
    """A team that shall be let in."""

    team: IdOrKey
    role: IdOrKey
    is_owner: bool


@strawberry.input
class ProjectShares:
    """All teams that shall be let in; others are not any longer."""

    shares: list[ProjectShareInput]


@strawberry.input
class ProjectFilter:
    """Which projects are wanted."""

    is_archived: bool | None = None


@strawberry.type
class ProjectQuery:
    """Projects."""

    @strawberry.field
    async def projects(self, info: Info, filter: ProjectFilter | None = None) -> list[Project]:
        """Those that the caller may read."""
        archived = bool(filter is not None and filter.is_archived)
        rows = await info.context.services.projects.all(info.context.caller, archived=archived)
        return [Project.of(row) for row in rows]

    @strawberry.field
    async def project(self, info: Info, id_or_key: IdOrKey) -> Project | None:
        """One of them."""
        row = await info.context.services.projects.find(info.context.caller, id_or_key)
        return None if row is None else Project.of(row)


@strawberry.type
class ProjectMutation:
    """Changing projects."""

    @strawberry.mutation
    async def create_project(self, info: Info, input: ProjectCreate) -> Project:
        """A project, owned by a team."""
        settings: dict[str, object] = {}
        if input.settings is not None:
            settings["default_metric"] = input.settings.default_metric
        new = NewProject(input.name, input.key, input.description or "", input.team, settings)
        return Project.of(await info.context.services.projects.create(info.context.caller, new))

    @strawberry.mutation
    async def share_project(self, info: Info, id_or_key: IdOrKey, input: ProjectShares) -> Project:
        """Replace the teams that may enter."""
        wishes = [ShareWish(item.team, item.role, item.is_owner) for item in input.shares]
        return Project.of(await info.context.services.projects.share(info.context.caller, id_or_key, wishes))
