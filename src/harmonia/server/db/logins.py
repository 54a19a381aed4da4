"""Log-ins that were begun, and browsers that are logged in."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class LoginState(Row, Base):
    """Somebody was sent to an OpenID provider and has not come back yet."""

    __tablename__ = "login_states"

    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """Of what the provider hands back together with what the browser keeps: neither alone is of use."""
    provider: Mapped[str] = mapped_column(String(MAX_KEY))
    """The key of the provider that was asked; an answer of another one is refused."""
    destination: Mapped[str] = mapped_column(Text)
    """The page to go to afterwards: a path of this server."""
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class LoginSession(Row, Base):
    """A browser that is logged in, of whose cookie only the digest is kept."""

    __tablename__ = "login_sessions"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
