"""Projects, and the teams that may enter them."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class Project(Row, Base):
    """What holds models, data sets, graders, metrics, recipes and interactions together."""

    __tablename__ = "projects"

    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    description: Mapped[str] = mapped_column(Text, default="")
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    archived_at: Mapped[int | None] = mapped_column(BigInteger)


class ProjectShare(Base):
    """A team that may enter a project: the owners with what each of them is in the team, others with one role."""

    __tablename__ = "project_shares"
    __table_args__ = (Index(None, "team_id", "project_id"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    team_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True)
    role_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("roles.id"))
    is_owner: Mapped[bool] = mapped_column(default=False)
