"""What chats begin with, whoever asks."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class SystemPromptTemplate(Row, Base):
    """A text with places for arguments. It never changes: a newer version is another row of the same name."""

    __tablename__ = "system_prompt_templates"
    __table_args__ = (Index(None, "project_id", "created_at"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    template: Mapped[str] = mapped_column(Text)
    created_by: Mapped[uuid.UUID]
