"""Files that come in parts."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class UploadSession(Row, Base):
    """A file on its way. Which parts have come is known to the store of files."""

    __tablename__ = "upload_sessions"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    total_parts: Mapped[int]
    content_type: Mapped[str | None] = mapped_column(String(MAX_KEY))
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Whatever the client wrote about the file."""
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
    """UTC milliseconds; every part moves it on."""
    file: Mapped[str | None] = mapped_column(String(64))
    """The name that the whole file gets, once somebody has claimed it; from then on no part is taken."""
