"""Types that name each other, whose modules therefore cannot import each other."""

from __future__ import annotations

from typing import Any

from strawberry.types.lazy_type import LazyType

from harmonia.server.graphql.context import Info

_PROJECT: Any = LazyType("Project", "harmonia.server.graphql.projects")
PROJECT: object = _PROJECT | None
"""For `graphql_type=` of fields; `object_of(info, "Project", row)` makes what they return."""
PROJECTS: object = list[_PROJECT]
"""The same for lists."""
_USER: Any = LazyType("User", "harmonia.server.graphql.people")
USER: object = _USER | None
_CAMPAIGN: Any = LazyType("Abcampaign", "harmonia.server.graphql.abtests")
CAMPAIGNS: object = list[_CAMPAIGN]
_GRADER: Any = LazyType("Grader", "harmonia.server.graphql.grader_types")
GRADER: object = _GRADER | None
_MODEL: Any = LazyType("Model", "harmonia.server.graphql.models")
MODEL: object = _MODEL | None
_JOB: Any = LazyType("Job", "harmonia.server.graphql.jobs")
JOB: object = _JOB | None
_ARTIFACT: Any = LazyType("JobArtifact", "harmonia.server.graphql.artifacts")
ARTIFACT: object = _ARTIFACT | None


def object_of(info: Info, name: str, *source: object) -> Any:
    """An object of the schema's type of that name, made by its `of`."""
    definition = info.schema.get_type_by_name(name)
    assert definition is not None, name
    return definition.origin.of(*source)  # type: ignore[union-attr]
