"""Changing what a project is called, shows and measures by, and putting it away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, require_in_project
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_name
from harmonia.server.services.metrics import metric_named
from harmonia.server.services.models.serving import Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectChange:
    """What shall be different; None stays as it is. picture: `emoji` and `image_key`; default_metric: by id or key."""

    name: str | None = None
    description: str | None = None
    picture: dict[str, str | None] | None = None
    default_metric: str | None = None
    archived: bool | None = None


class ProjectChanges:
    """Changes projects."""

    def __init__(self, database: Database, serving: Serving) -> None:
        self._database = database
        self._serving = serving

    async def update(self, caller: Caller, project: str, change: ProjectChange) -> Project:
        """Needs `project:update`. Models of an archived project are served no longer for it; nothing is deleted."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            row = await session.get(Project, access.project_id)
            assert row is not None
            if change.name is not None:
                row.name = checked_name(change.name)
            if change.description is not None:
                row.description = change.description
            settings: dict[str, Any] = dict(row.settings)
            if change.picture is not None:
                settings["picture"] = change.picture
            if change.default_metric is not None:
                settings["default_metric"] = (await metric_named(session, row.id, change.default_metric)).key
            row.settings = settings
            if change.archived is not None:
                row.archived_at = (row.archived_at or now_ms()) if change.archived else None
            record(session, caller, "project.update", f"project/{row.key}", archived=change.archived)
        self._serving.wake()
        return row
