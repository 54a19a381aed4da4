"""Projects and the teams that may enter them."""

from __future__ import annotations

import uuid

import strawberry

from harmonia.server.db import projects as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.entity_filters import AbCampaignFilter, ProjectFilter
from harmonia.server.graphql.figures import Activity, activity
from harmonia.server.graphql.interaction_options import LabelUsage
from harmonia.server.graphql.lazy import CAMPAIGNS, object_of
from harmonia.server.graphql.metrics import MetricFilter, MetricWithContext
from harmonia.server.graphql.models import CapabilityFilter, Model, ModelFilter, ModelService
from harmonia.server.graphql.paging import TimeRange
from harmonia.server.graphql.people import Role, Team
from harmonia.server.graphql.scalars import IdOrKey, Key, Timestamp
from harmonia.server.services.abtests.abtests import CampaignWish
from harmonia.server.services.interactions.selection import READ
from harmonia.server.services.models.deployments import Bound
from harmonia.server.services.models.models import ModelWish
from harmonia.server.services.people.project_changes import ProjectChange
from harmonia.server.services.people.projects import NewProject, ShareWish


@strawberry.type
class Share:
    """A team that may enter a project."""

    team: Team
    role: Role
    is_owner: bool


@strawberry.type
class Emoji:
    """A picture made of one sign."""

    native: str


@strawberry.type
class ProjectMetadata:
    """The picture of a project."""

    emoji: Emoji | None
    image_key: str | None

    @classmethod
    def of(cls, row: db.Project) -> ProjectMetadata:
        """From the project's row."""
        picture = row.settings.get("picture") or {}
        emoji = picture.get("emoji")
        return cls(emoji=None if emoji is None else Emoji(native=emoji), image_key=picture.get("image_key"))


@strawberry.type
class Settings:
    """Settings of a project."""

    default_metric: MetricWithContext | None


@strawberry.input
class ModelServiceFilter:
    """Which models of a project are wanted. activeOnly changes nothing: those that were taken out are not shown."""

    model: IdOrKey | None = None
    capabilities: CapabilityFilter | None = None
    active_only: bool = True

    def lets_through(self, bound: Bound) -> bool:
        """Whether a model is wanted."""
        model, wanted = bound.model, self.capabilities
        if self.model is not None and self.model not in (model.key, str(model.id)):
            return False
        return wanted is None or wanted.is_met_by(model.capabilities)


async def _campaigns(
    root: strawberry.Parent[Project],
    info: Info,
    filter: AbCampaignFilter | None = None,
) -> list[object]:
    """Its A/B tests."""
    wish = CampaignWish(project=str(root.id)) if filter is None else filter.wish(str(root.id))
    found = await info.context.services.abtests.all(info.context.caller, wish)
    return [object_of(info, "Abcampaign", item) for item in found]


@strawberry.type
class Project:
    """What holds models, data sets, graders, metrics, recipes and interactions together."""

    id: uuid.UUID
    key: str
    name: str
    description: str
    created_at: Timestamp
    is_archived: bool
    metadata: ProjectMetadata
    default_metric: strawberry.Private[str | None]
    ab_campaigns: list[object] = strawberry.field(resolver=_campaigns, graphql_type=CAMPAIGNS)

    @classmethod
    def of(cls, row: db.Project) -> Project:
        """From its row."""
        return cls(
            id=row.id,
            key=row.key,
            name=row.name,
            description=row.description,
            created_at=Timestamp(row.created_at),
            is_archived=row.archived_at is not None,
            metadata=ProjectMetadata.of(row),
            default_metric=row.settings.get("default_metric"),
        )

    @strawberry.field
    async def permissions(self, info: Info) -> list[str]:
        """What the caller may do here."""
        return await info.context.services.projects.permissions(info.context.caller, self.id)

    @strawberry.field
    async def model_services(self, info: Info, filter: ModelServiceFilter | None = None) -> list[ModelService]:
        """The models in it."""
        found = await info.context.services.deployments.of_project(self.id)
        return [ModelService.of(bound) for bound in found if filter is None or filter.lets_through(bound)]

    @strawberry.field
    async def model_service(self, info: Info, id_or_key: IdOrKey) -> ModelService | None:
        """One of them."""
        found = await info.context.services.deployments.of_project(self.id)
        named = (bound for bound in found if id_or_key in (bound.service.key, str(bound.service.id)))
        return next((ModelService.of(bound) for bound in named), None)

    @strawberry.field
    async def default_model_service(self, info: Info) -> ModelService | None:
        """The one that answers where no model is named."""
        found = await info.context.services.deployments.of_project(self.id)
        return next((ModelService.of(bound) for bound in found if bound.service.is_default), None)

    @strawberry.field
    async def models(self, info: Info, filter: ModelFilter | None = None) -> list[Model]:
        """The models of the registry that are in it."""
        wish = ModelWish() if filter is None else filter.wish
        allowed = {row.id for row in await info.context.services.models.all(info.context.caller, wish)}
        found = await info.context.services.deployments.of_project(self.id)
        return [Model.of(bound.model) for bound in found if bound.model.id in allowed]

    @strawberry.field
    async def metric(self, info: Info, metric: IdOrKey) -> MetricWithContext | None:
        """One of what its completions are measured by."""
        return await self._metric(info, metric)

    @strawberry.field
    async def settings(self, info: Info) -> Settings:
        """What was chosen for it."""
        return Settings(default_metric=await self._metric(info, self.default_metric))

    async def _metric(self, info: Info, name: str | None) -> MetricWithContext | None:
        if name is None:
            return None
        registry = info.context.services.metrics_registry
        found = await registry.find(info.context.caller, str(self.id), name)
        return None if found is None else MetricWithContext.of(found)

    @strawberry.field
    async def label_usage(self, info: Info) -> LabelUsage:
        """The labels of its interactions; none for whoever may not see these."""
        services = info.context.services
        if READ not in await services.projects.permissions(info.context.caller, self.id):
            return LabelUsage(keys=[])
        return LabelUsage.of(await services.surroundings.labels(self.id))

    @strawberry.field
    async def metrics(self, info: Info, filter: MetricFilter | None = None) -> list[MetricWithContext]:
        """What its completions are measured by."""
        registry = info.context.services.metrics_registry
        wish = None if filter is None else filter.wish
        found = await registry.of_project(info.context.caller, self.id, wish)
        return [MetricWithContext.of(item) for item in found]

    @strawberry.field
    async def activity(self, info: Info, timerange: TimeRange | None = None) -> Activity | None:
        """How much was asked and scored; null for who may not see its interactions."""
        return await activity(info, timerange, project_id=self.id)

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

    @property
    def picture(self) -> dict[str, str | None]:
        """For services."""
        return {"emoji": None if self.emoji is None else self.emoji.native, "image_key": self.image_key}


@strawberry.input
class ProjectSettingsInput:
    """Settings of a project."""

    default_metric: str | None = None


@strawberry.input
class ProjectUpdate:
    """What shall be different about a project."""

    name: str | None = None
    description: str | None = None
    metadata: ProjectMetadataInput | None = None
    settings: ProjectSettingsInput | None = None
    is_archived: bool | None = None

    @property
    def change(self) -> ProjectChange:
        """For services."""
        return ProjectChange(
            name=self.name,
            description=self.description,
            picture=None if self.metadata is None else self.metadata.picture,
            default_metric=None if self.settings is None else self.settings.default_metric,
            archived=self.is_archived,
        )


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
        if input.metadata is not None:
            settings["picture"] = input.metadata.picture
        new = NewProject(input.name, input.key, input.description or "", input.team, settings)
        return Project.of(await info.context.services.projects.create(info.context.caller, new))

    @strawberry.mutation
    async def update_project(self, info: Info, id_or_key: IdOrKey, input: ProjectUpdate) -> Project:
        """Change a project, or put it away and take it out again."""
        changes = info.context.services.project_changes
        return Project.of(await changes.update(info.context.caller, id_or_key, input.change))

    @strawberry.mutation
    async def share_project(self, info: Info, id_or_key: IdOrKey, input: ProjectShares) -> Project:
        """Replace the teams that may enter."""
        wishes = [ShareWish(item.team, item.role, item.is_owner) for item in input.shares]
        return Project.of(await info.context.services.projects.share(info.context.caller, id_or_key, wishes))
