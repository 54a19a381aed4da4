"""Users, the keys they call with, teams, roles, and what everybody did."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class User(Row, Base):
    """Somebody who calls: a person, or a service account."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    is_system: Mapped[bool] = mapped_column(default=False)
    """A service account."""
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)


class ApiKey(Row, Base):
    """A key, of which only the digest is kept."""

    __tablename__ = "api_keys"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 in hexadecimal: keys are random, so no salt is needed."""
    hint: Mapped[str] = mapped_column(String(16))
    """The first letters, to tell keys apart."""
    job_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """Only while this job runs."""
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)


class Team(Row, Base):
    """People who share projects. The team `admin` is reserved: its members act on everything."""

    __tablename__ = "teams"

    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))


class Role(Row, Base):
    """A set of permissions."""

    __tablename__ = "roles"

    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))


class RolePermission(Base):
    """One permission of a role."""

    __tablename__ = "role_permissions"

    role_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("roles.id", ondelete="CASCADE"), primary_key=True)
    permission: Mapped[str] = mapped_column(String(64), primary_key=True)


class TeamMember(Row, Base):
    """What a user is in a team."""

    __tablename__ = "team_members"
    __table_args__ = (UniqueConstraint("user_id", "team_id"),)

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    team_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    role_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("roles.id"))


class AuditEntry(Row, Base):
    """Who changed what. Never changed, never deleted with what it tells of."""

    __tablename__ = "audit_log"

    user_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """None: the system itself."""
    action: Mapped[str] = mapped_column(String(64), index=True)
    """Such as `team.create`."""
    entity: Mapped[str] = mapped_column(String(MAX_KEY))
    """Kind and key of what was changed, such as `team/support`."""
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
