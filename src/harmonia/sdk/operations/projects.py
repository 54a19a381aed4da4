"""Projects and the teams that may enter them."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, optional, query
from harmonia.sdk.operations.metrics import ProjectMetric
from harmonia.sdk.operations.models import ModelService
from harmonia.sdk.operations.people import Role, Team


class Share(Result, frozen=True):
    """A team that may enter a project, and as what."""

    team: Team
    role: Role
    is_owner: bool


class Project(Result, frozen=True):
    """What holds models, data sets, graders, metrics, recipes and interactions together.

    `permissions` are those of whoever asks.
    """

    id: str
    key: str
    name: str
    description: str
    created_at: int
    permissions: list[str]
    shares: list[Share]


class ProjectModels(Result, frozen=True):
    """The models that a project serves."""

    model_services: list[ModelService]


class ProjectMetrics(Result, frozen=True):
    """The metrics of a project."""

    metrics: list[ProjectMetric]


PROJECTS = query("projects", list[Project])
PROJECT = optional("project", Project, idOrKey="IdOrKey!")
PROJECT_MODELS = optional("project", ProjectModels, idOrKey="IdOrKey!")
PROJECT_METRICS = optional("project", ProjectMetrics, idOrKey="IdOrKey!")
CREATE_PROJECT = mutation("createProject", Project, input="ProjectCreate!")
SHARE_PROJECT = mutation("shareProject", Project, idOrKey="IdOrKey!", input="ProjectShares!")
