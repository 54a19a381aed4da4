"""Every table, so that whoever makes or migrates the database knows them all."""

from __future__ import annotations

from harmonia.server.db import (
    abtests,
    datasets,
    graders,
    integrations,
    interactions,
    jobs,
    logins,
    metrics,
    models,
    monitoring,
    people,
    projects,
    prompts,
    recipes,
    uploads,
)
from harmonia.server.db.base import Base

__all__ = [
    "METADATA",
    "abtests",
    "datasets",
    "graders",
    "integrations",
    "interactions",
    "jobs",
    "logins",
    "metrics",
    "models",
    "monitoring",
    "people",
    "projects",
    "prompts",
    "recipes",
    "uploads",
]

METADATA = Base.metadata
