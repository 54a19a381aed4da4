"""Who may do what: one query for each call.

A user is a member of teams, with a role in each. A project is shared with teams: members of an owning team act in it
with their own role, members of another team with the role of the share. Members of the reserved team `admin` act with
their role everywhere.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Select, Uuid, and_, bindparam, case, cast, false, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from harmonia import tracing
from harmonia.errors import AuthenticationError, EntityNotFoundError, PermissionDeniedError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.people import ApiKey, RolePermission, Team, TeamMember, User
from harmonia.server.db.projects import Project, ProjectShare
from harmonia.server.services.permissions import PERMISSIONS

Ts = TypeVarTuple("Ts")

ADMIN_TEAM = "admin"
KEY_PREFIX = "hk-"
_HINT = 8


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever calls, known by a valid key or cookie."""

    user_id: uuid.UUID
    email: str
    job_id: uuid.UUID | None = None
    """The job that calls, if one does."""


@dataclass(frozen=True, slots=True)
class ProjectAccess:
    """A caller in a project where the permission that was asked for holds."""

    caller: Caller
    project_id: uuid.UUID
    project_key: str


def new_api_key() -> str:
    """A key nobody can guess."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(api_key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest()


def key_row(user_id: uuid.UUID, api_key: str, *, job_id: uuid.UUID | None = None) -> ApiKey:
    """A key's row."""
    return ApiKey(user_id=user_id, digest=digest_of(api_key), hint=api_key[:_HINT], job_id=job_id)


def bearer(authorization: str | None) -> str:
    """The key in the value of an `Authorization` header."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise AuthenticationError("this server wants an API key: send the header 'Authorization: Bearer KEY'")
    return key.strip()


def by_id_or_key(
    id_column: InstrumentedAttribute[uuid.UUID] | InstrumentedAttribute[uuid.UUID | None],
    key_column: InstrumentedAttribute[str],
    text: str,
) -> ColumnElement[bool]:
    """Matches the row with this id or this key."""
    try:
        return or_(id_column == uuid.UUID(text), key_column == text)
    except ValueError:
        return key_column == text


class Access:
    """Checks callers against the database, so that what changes there holds from the next call on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def caller(self, api_key: str) -> Caller:
        """Whoever owns a key; `AuthenticationError` if nobody does any longer."""
        with tracing.span("identify caller"):
            row = await self._database.first(_CALLER, {"digest": digest_of(api_key), "now": now_ms()})
        if row is None:
            raise AuthenticationError("the API key is not one that this server knows, or it was revoked")
        return Caller(row.id, row.email, row.job_id)

    async def in_project(self, api_key: str, project: str, permission: str) -> ProjectAccess:
        """A caller's access to a project by id or key, in one query when it is granted.

        Raises `AuthenticationError`, `EntityNotFoundError` or `PermissionDeniedError`.
        """
        values = {"digest": digest_of(api_key), "now": now_ms(), "permission": permission, **_project_values(project)}
        with tracing.span("check permission", {"harmonia.permission": permission}):
            row = await self._database.first(_BY_KEY, values)
        if row is not None:
            return ProjectAccess(Caller(row.id, row.email, row.job_id), row.project_id, row.project_key)
        return await self.require(await self.caller(api_key), project, permission)

    async def require(self, caller: Caller, project: str, permission: str) -> ProjectAccess:
        """The same for a caller who is known already."""
        async with self._database.read() as session:
            return await require_in_project(session, caller, project, permission)

    async def require_anywhere(self, caller: Caller, permission: str) -> None:
        """The permission in some team."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, permission)


async def require_in_project(session: AsyncSession, caller: Caller, project: str, permission: str) -> ProjectAccess:
    """Access inside a transaction; see `Access.in_project` for errors."""
    assert permission in PERMISSIONS, permission
    values = {"user_id": caller.user_id, "permission": permission, **_project_values(project)}
    row = (await session.execute(_BY_USER, values)).first()
    if row is not None:
        return ProjectAccess(caller, row.project_id, row.project_key)
    found = (await session.execute(select(Project.key).where(_named_project()), _project_values(project))).first()
    if found is None:
        raise EntityNotFoundError(f"Project {project!r} does not exist", entity="project")
    raise PermissionDeniedError(
        f"{caller.email} lacks the permission {permission!r} in project {found.key!r}; ask an owner of it to share it "
        "with a role that has it"
    )


async def require_anywhere(session: AsyncSession, caller: Caller, permission: str) -> None:
    """Raise `PermissionDeniedError` unless the caller has the permission in some team."""
    assert permission in PERMISSIONS, permission
    if permission.startswith("admin:"):
        refuse_jobs(caller)
    query = (
        select(TeamMember.id)
        .join(RolePermission, RolePermission.role_id == TeamMember.role_id)
        .where(TeamMember.user_id == caller.user_id, RolePermission.permission == permission)
    )
    if (await session.execute(query.limit(1))).first() is None:
        raise PermissionDeniedError(
            f"{caller.email} lacks the permission {permission!r}; ask an admin for a role with it"
        )


async def require_somewhere(session: AsyncSession, caller: Caller, *permissions: str) -> None:
    """Raise `PermissionDeniedError` unless the caller has one of the permissions in a team, or where one was let in."""
    assert PERMISSIONS.keys() >= set(permissions), permissions
    # Members of an owning team act with their own role, whatever the share says.
    lent = select(ProjectShare.role_id).where(
        ProjectShare.team_id == TeamMember.team_id, ProjectShare.is_owner == false()
    )
    query = (
        select(TeamMember.id)
        .join(RolePermission, or_(RolePermission.role_id == TeamMember.role_id, RolePermission.role_id.in_(lent)))
        .where(TeamMember.user_id == caller.user_id, RolePermission.permission.in_(permissions))
    )
    if (await session.execute(query.limit(1))).first() is None:
        wanted = " or ".join(map(repr, permissions))
        raise PermissionDeniedError(f"{caller.email} lacks the permission {wanted} everywhere; ask for a role with it")


def refuse_jobs(caller: Caller) -> None:
    """Raise `PermissionDeniedError` for a job: what its key could make would outlive the key."""
    if caller.job_id is not None:
        raise PermissionDeniedError("a job may not manage people and keys; do it with a key of your own")


async def require_admin(session: AsyncSession, caller: Caller, permission: str) -> None:
    """What only members of the reserved team may do whose role there has the permission: one from elsewhere is not
    enough."""
    await require_anywhere(session, caller, permission)
    if permission not in await team_permissions(session, caller, ADMIN_TEAM):
        raise PermissionDeniedError(
            f"{caller.email} is not a member of the team {ADMIN_TEAM!r} with the permission {permission!r}, and only "
            "such members may do this"
        )


async def team_permissions(session: AsyncSession, caller: Caller, team: str) -> frozenset[str]:
    """What the caller may do as a member of a team, by its key."""
    query = (
        select(RolePermission.permission)
        .join(TeamMember, TeamMember.role_id == RolePermission.role_id)
        .join(Team, Team.id == TeamMember.team_id)
        .where(TeamMember.user_id == caller.user_id, Team.key == team)
    )
    return frozenset((await session.execute(query)).scalars())


async def require_no_more_than(session: AsyncSession, own: Collection[str], role_ids: Collection[uuid.UUID]) -> None:
    """Raise `PermissionDeniedError` if one of the roles permits what `own` lacks: nobody gives, or takes from others,
    more than they have."""
    query = select(RolePermission.permission).where(RolePermission.role_id.in_(role_ids)).distinct()
    missing = sorted(set((await session.execute(query)).scalars()) - set(own))
    if missing:
        raise PermissionDeniedError(
            f"that takes permissions that you lack yourself ({', '.join(missing)}); ask somebody who has them"
        )


async def project_permissions(session: AsyncSession, caller: Caller, project_id: uuid.UUID) -> list[str]:
    """Everything that the caller may do in a project."""
    query = (
        _granted(select(RolePermission.permission).distinct())
        .where(TeamMember.user_id == caller.user_id, Project.id == project_id)
        .order_by(RolePermission.permission)
    )
    return list((await session.execute(query)).scalars())


def visible_projects(caller: Caller, permission: str = "project:read") -> Select[uuid.UUID]:
    """Ids of the projects in which the caller has a permission: for `Project.id.in_(...)`."""
    return _granted(select(Project.id).distinct()).where(
        TeamMember.user_id == caller.user_id, RolePermission.permission == permission
    )


# ------------------------------------------------------------------------------------------------- the query


def _granted(query: Select[*Ts]) -> Select[*Ts]:
    """Joins members, their projects and the permissions that they have there."""
    # A share never takes anything from the reserved team.
    owns = or_(ProjectShare.is_owner == true(), Team.key == ADMIN_TEAM)
    role_id = case((owns, TeamMember.role_id), else_=ProjectShare.role_id)
    share = and_(ProjectShare.team_id == TeamMember.team_id, ProjectShare.project_id == Project.id)
    return (
        query.select_from(TeamMember)
        .join(Team, Team.id == TeamMember.team_id)
        .join(Project, true())
        .outerjoin(ProjectShare, share)
        .join(RolePermission, RolePermission.role_id == role_id)
        .where(or_(ProjectShare.team_id.is_not(None), Team.key == ADMIN_TEAM))
    )


def _named_project() -> ColumnElement[bool]:
    return or_(
        Project.id == cast(bindparam("project_id", type_=Uuid), Uuid), Project.key == bindparam("project_key_wanted")
    )


def _project_values(project: str) -> dict[str, object]:
    try:
        project_id = uuid.UUID(project)
    except ValueError:
        project_id = None
    return {"project_id": project_id, "project_key_wanted": project}


def _valid_key() -> ColumnElement[bool]:
    return and_(
        ApiKey.digest == bindparam("digest"),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now")),
        User.deleted_at.is_(None),
    )


_CALLER = select(User.id, User.email, ApiKey.job_id).join(ApiKey, ApiKey.user_id == User.id).where(_valid_key())
_BY_USER = (
    _granted(select(Project.id.label("project_id"), Project.key.label("project_key")))
    .where(
        TeamMember.user_id == bindparam("user_id"),
        RolePermission.permission == bindparam("permission"),
        _named_project(),
    )
    .limit(1)
)
_BY_KEY = (
    _granted(
        select(User.id, User.email, ApiKey.job_id, Project.id.label("project_id"), Project.key.label("project_key"))
    )
    .join(User, User.id == TeamMember.user_id)
    .join(ApiKey, ApiKey.user_id == User.id)
    .where(_valid_key(), RolePermission.permission == bindparam("permission"), _named_project())
    .limit(1)
)
