"""Every table, so that whoever makes or migrates the database knows them all."""

from __future__ import annotations

from harmonia.server.db import people, projects
from harmonia.server.db.base import Base

__all__ = ["METADATA", "people", "projects"]

METADATA = Base.metadata
