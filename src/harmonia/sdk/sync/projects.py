# Made by scripts/generate of src/harmonia/sdk/aio/projects.py: change that file, then run the script.
"""Projects."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.errors import EntityNotFoundError
from harmonia.sdk.inputs import timerange
from harmonia.sdk.operations import projects, usage
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.models import ModelService
from harmonia.sdk.operations.projects import Project
from harmonia.sdk.operations.usage import Activity
from harmonia.sdk.sync.resource import Resource


class Projects(Resource):
    """`adaptive.projects`."""

    def list(self) -> Sequence[Project]:
        """Those that the caller may read."""
        return self._transport.execute(projects.PROJECTS)

    def get(self, project: str | None = None) -> Project | None:
        """One of them; None if it does not exist, or may not be read."""
        return self._transport.execute(projects.PROJECT, idOrKey=self._project(project))

    def create(
        self, key: str, name: str | None = None, description: str | None = None, team: str | None = None
    ) -> Project:
        """A project, owned by a team; its name is its key unless given."""
        body = given(key=key, name=name or key, description=description, team=team)
        return self._transport.execute(projects.CREATE_PROJECT, input=body)

    def share(self, project: str, team: str, role: str, is_owner: bool = False) -> Project:
        """Let a team in, or change as what it is in."""
        shares = [share for share in self._shares(project) if team not in (share["team"], share["id"])]
        shares.append({"team": team, "role": role, "isOwner": is_owner})
        return self._replace(project, shares)

    def unshare(self, project: str, team: str) -> Project:
        """Let a team in no longer."""
        shares = [share for share in self._shares(project) if team not in (share["team"], share["id"])]
        return self._replace(project, shares)

    def models(self, project: str | None = None) -> Sequence[ModelService]:
        """The models that it serves."""
        chosen = self._project(project)
        found = self._transport.execute(projects.PROJECT_MODELS, idOrKey=chosen)
        if found is None:
            raise EntityNotFoundError(f"Project {chosen!r} does not exist", entity="project")
        return found.model_services

    def activity(
        self, project: str | None = None, since: int | str | None = None, until: int | str | None = None
    ) -> Activity | None:
        """How much was asked and scored from a moment to another: milliseconds since 1970, dates, or `now - 1 week`.

        Without moments: ever, and no trend. None for who may not see the project's interactions.
        """
        chosen = self._project(project)
        found = self._transport.execute(usage.ACTIVITY, idOrKey=chosen, timerange=timerange(since, until))
        if found is None:
            raise EntityNotFoundError(f"Project {chosen!r} does not exist", entity="project")
        return found.activity

    def _shares(self, project: str) -> Sequence[dict[str, object]]:
        found = self.get(project)
        if found is None:
            raise EntityNotFoundError(f"Project {project!r} does not exist", entity="project")
        return [
            {"id": share.team.id, "team": share.team.key, "role": share.role.key, "isOwner": share.is_owner}
            for share in found.shares
        ]

    def _replace(self, project: str, shares: Sequence[dict[str, object]]) -> Project:
        body = {"shares": [{name: value for name, value in share.items() if name != "id"} for share in shares]}
        return self._transport.execute(projects.SHARE_PROJECT, idOrKey=project, input=body)
