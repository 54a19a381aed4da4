"""Users, service accounts, teams, roles and keys."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.people import ApiKey, Role, RolePermission, Team, TeamMember, User
from harmonia.server.services.access import (
    ADMIN_TEAM,
    Caller,
    by_id_or_key,
    is_admin,
    key_row,
    new_api_key,
    require_admin,
    require_anywhere,
)
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_key, key_from
from harmonia.server.services.permissions import DEFAULT_ROLES, PERMISSIONS

_SYSTEM_NAME = re.compile(r"[a-z0-9_-]+")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_SYSTEM_DOMAIN = "system.adaptive.local"


@dataclass(frozen=True, slots=True)
class RoleInfo:
    """A role and what it permits."""

    role: Role
    permissions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Membership:
    """What a user is in a team."""

    user: User
    team: Team
    role: RoleInfo


@dataclass(frozen=True, slots=True)
class NewUser:
    """What a user is made of. teams: (team, role) by id or key."""

    name: str
    email: str | None = None
    teams: Sequence[tuple[str, str]] = ()
    is_system: bool = False
    with_key: bool = False


class People:
    """Everything about who there is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def bootstrap(self, email: str) -> str | None:
        """Make roles, the teams `admin` and `default`, and an admin: its key. None if that was done before."""
        async with self._database.begin() as session:
            if (await session.execute(select(User.id).limit(1))).first() is not None:
                return None
            roles = {}
            for key, (name, permissions) in DEFAULT_ROLES.items():
                roles[key] = Role(key=key, name=name)
                session.add(roles[key])
                await session.flush()
                session.add_all(RolePermission(role_id=roles[key].id, permission=item) for item in permissions)
            teams = [Team(key=ADMIN_TEAM, name="Admin"), Team(key="default", name="Default")]
            user = User(email=email, name=email.partition("@")[0])
            session.add_all([*teams, user])
            await session.flush()
            session.add_all(TeamMember(user_id=user.id, team_id=team.id, role_id=roles["admin"].id) for team in teams)
            api_key = new_api_key()
            session.add(key_row(user.id, api_key))
            record(session, None, "user.create", f"user/{email}")
            return api_key

    async def me(self, caller: Caller) -> User | None:
        """The caller."""
        async with self._database.read() as session:
            return await session.get(User, caller.user_id)

    async def users(self, caller: Caller) -> list[User]:
        """Everybody who was not deleted."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "team:read")
            query = select(User).where(User.deleted_at.is_(None)).order_by(User.created_at, User.id)
            return list((await session.execute(query)).scalars())

    async def memberships(self, user_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Membership]]:
        """The teams of some users."""
        found: dict[uuid.UUID, list[Membership]] = {user_id: [] for user_id in user_ids}
        async with self._database.read() as session:
            query = (
                select(User, Team, Role)
                .join(TeamMember, TeamMember.user_id == User.id)
                .join(Team, Team.id == TeamMember.team_id)
                .join(Role, Role.id == TeamMember.role_id)
                .where(User.id.in_(user_ids))
                .order_by(Team.key)
            )
            rows = (await session.execute(query)).all()
            roles = await _with_permissions(session, [role for _, _, role in rows])
        for user, team, role in rows:
            found[user.id].append(Membership(user, team, roles[role.id]))
        return found

    async def create_user(self, caller: Caller, new: NewUser) -> tuple[User, str | None]:
        """A user or service account, and its key if one is wanted, which is shown this once."""
        email = _email_of(new)
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "admin:manage_users")
            existing = (await session.execute(select(User).where(User.email == email))).scalar_one_or_none()
            if existing is not None and existing.deleted_at is None:
                raise InvalidRequestError(f"somebody with the address {email!r} exists already", field="email")
            user = existing or User(email=email)
            user.name, user.is_system, user.deleted_at = new.name, new.is_system, None
            session.add(user)
            await session.flush()
            for team, role in new.teams:
                await _set_member(session, caller, user, team, role)
            api_key = new_api_key() if new.with_key else None
            if api_key is not None:
                session.add(key_row(user.id, api_key))
            record(session, caller, "user.create", f"user/{email}", is_system=new.is_system)
            return user, api_key

    async def delete_user(self, caller: Caller, user: str) -> User:
        """Nobody can call with the user's keys from now on."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "admin:manage_users")
            found = await _user(session, user)
            if found.id == caller.user_id:
                raise InvalidRequestError("nobody can delete themselves; ask another admin", field="user")
            found.deleted_at = now_ms()
            await session.execute(delete(TeamMember).where(TeamMember.user_id == found.id))
            await session.execute(
                update(ApiKey)
                .where(ApiKey.user_id == found.id, ApiKey.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )
            record(session, caller, "user.delete", f"user/{found.email}")
            return found

    async def set_member(self, caller: Caller, user: str, team: str, role: str) -> Membership:
        """Put a user into a team, or change what the user is there."""
        async with self._database.begin() as session:
            found = await _user(session, user)
            await _set_member(session, caller, found, team, role)
            record(session, caller, "team.set_member", f"team/{team}", user=found.email, role=role)
            user_id, team_row = found.id, await _team(session, team)
        memberships = (await self.memberships([user_id]))[user_id]
        return next(item for item in memberships if item.team.id == team_row.id)

    async def remove_member(self, caller: Caller, user: str, team: str) -> User:
        """Take a user out of a team."""
        async with self._database.begin() as session:
            found, team_row = await _user(session, user), await _team(session, team)
            await _require_team_manager(session, caller, team_row)
            await session.execute(
                delete(TeamMember).where(TeamMember.user_id == found.id, TeamMember.team_id == team_row.id)
            )
            record(session, caller, "team.remove_member", f"team/{team_row.key}", user=found.email)
            return found

    async def create_key(self, caller: Caller) -> str:
        """A further key of the caller, shown this once."""
        api_key = new_api_key()
        async with self._database.begin() as session:
            session.add(key_row(caller.user_id, api_key))
            record(session, caller, "key.create", f"user/{caller.email}")
        return api_key

    async def revoke_key(self, caller: Caller, key_id: uuid.UUID) -> None:
        """A key of the caller, or, for admins, of anybody, is refused from the next call on."""
        async with self._database.begin() as session:
            row = await session.get(ApiKey, key_id)
            if row is None or (row.user_id != caller.user_id and not await is_admin(session, caller)):
                raise EntityNotFoundError(f"API key {key_id} does not exist", entity="key")
            row.revoked_at = row.revoked_at or now_ms()
            record(session, caller, "key.revoke", f"key/{row.hint}")

    # ------------------------------------------------------------------------------------- teams and roles

    async def teams(self, caller: Caller) -> list[Team]:
        """All teams."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "team:read")
            return list((await session.execute(select(Team).order_by(Team.created_at, Team.key))).scalars())

    async def create_team(self, caller: Caller, name: str, key: str | None) -> Team:
        """Only members of the reserved team may."""
        async with self._database.begin() as session:
            await require_admin(session, caller, "admin:manage_teams")
            key = checked_key(key) if key else key_from(name)
            await _refuse_taken(session, Team, key)
            team = Team(key=key, name=name)
            session.add(team)
            record(session, caller, "team.create", f"team/{key}")
            return team

    async def roles(self, caller: Caller) -> list[RoleInfo]:
        """All roles."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "team:read")
            rows = list((await session.execute(select(Role).order_by(Role.created_at, Role.key))).scalars())
            return list((await _with_permissions(session, rows)).values())

    async def role_infos(self, role_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, RoleInfo]:
        """Roles by id."""
        async with self._database.read() as session:
            rows = list((await session.execute(select(Role).where(Role.id.in_(role_ids)))).scalars())
            return await _with_permissions(session, rows)

    async def create_role(self, caller: Caller, name: str, key: str | None, permissions: Sequence[str]) -> RoleInfo:
        """Only members of the reserved team may."""
        async with self._database.begin() as session:
            await require_admin(session, caller, "admin:manage_roles")
            key = checked_key(key) if key else key_from(name)
            await _refuse_taken(session, Role, key)
            role = Role(key=key, name=name)
            session.add(role)
            await session.flush()
            wanted = _checked_permissions(permissions)
            session.add_all(RolePermission(role_id=role.id, permission=item) for item in wanted)
            record(session, caller, "role.create", f"role/{key}", permissions=list(wanted))
            return RoleInfo(role, wanted)

    async def update_role(
        self, caller: Caller, role: str, name: str | None, permissions: Sequence[str] | None
    ) -> RoleInfo:
        """None changes nothing."""
        async with self._database.begin() as session:
            await require_admin(session, caller, "admin:manage_roles")
            row = await _role(session, role)
            if row.key == "admin" and permissions is not None:
                raise InvalidRequestError("the role 'admin' permits everything; make another role", field="permissions")
            row.name = name or row.name
            if permissions is not None:
                wanted = _checked_permissions(permissions)
                await session.execute(delete(RolePermission).where(RolePermission.role_id == row.id))
                session.add_all(RolePermission(role_id=row.id, permission=item) for item in wanted)
            await session.flush()
            record(session, caller, "role.update", f"role/{row.key}", permissions=list(permissions or ()))
            return (await _with_permissions(session, [row]))[row.id]


async def _set_member(session: AsyncSession, caller: Caller, user: User, team: str, role: str) -> None:
    team_row, role_row = await _team(session, team), await _role(session, role)
    await _require_team_manager(session, caller, team_row)
    query = select(TeamMember).where(TeamMember.user_id == user.id, TeamMember.team_id == team_row.id)
    member = (await session.execute(query)).scalar_one_or_none()
    if member is None:
        session.add(TeamMember(user_id=user.id, team_id=team_row.id, role_id=role_row.id))
    else:
        member.role_id = role_row.id
    await session.flush()


async def _require_team_manager(session: AsyncSession, caller: Caller, team: Team) -> None:
    """Members of the reserved team manage all teams, others those in which they have the permission."""
    if await is_admin(session, caller):
        await require_anywhere(session, caller, "admin:manage_teams")
        return
    query = (
        select(TeamMember.id)
        .join(RolePermission, RolePermission.role_id == TeamMember.role_id)
        .where(
            TeamMember.user_id == caller.user_id,
            TeamMember.team_id == team.id,
            RolePermission.permission == "team:manage_members",
        )
    )
    if (await session.execute(query)).first() is None:
        await require_admin(session, caller, "admin:manage_teams")


async def _user(session: AsyncSession, text: str) -> User:
    query = select(User).where(by_id_or_key(User.id, User.email, text), User.deleted_at.is_(None))
    user = (await session.execute(query)).scalar_one_or_none()
    if user is None:
        raise EntityNotFoundError(f"User {text!r} does not exist", entity="user")
    return user


async def _team(session: AsyncSession, text: str) -> Team:
    team = (await session.execute(select(Team).where(by_id_or_key(Team.id, Team.key, text)))).scalar_one_or_none()
    if team is None:
        raise EntityNotFoundError(f"Team {text!r} does not exist", entity="team")
    return team


async def _role(session: AsyncSession, text: str) -> Role:
    role = (await session.execute(select(Role).where(by_id_or_key(Role.id, Role.key, text)))).scalar_one_or_none()
    if role is None:
        raise EntityNotFoundError(f"Role {text!r} does not exist", entity="role")
    return role


async def _with_permissions(session: AsyncSession, roles: Sequence[Role]) -> dict[uuid.UUID, RoleInfo]:
    query = select(RolePermission).where(RolePermission.role_id.in_([role.id for role in roles]))
    found: dict[uuid.UUID, list[str]] = {role.id: [] for role in roles}
    for item in (await session.execute(query.order_by(RolePermission.permission))).scalars():
        found[item.role_id].append(item.permission)
    return {role.id: RoleInfo(role, tuple(found[role.id])) for role in roles}


async def _refuse_taken(session: AsyncSession, table: type[Team | Role], key: str) -> None:
    if (await session.execute(select(table.id).where(table.key == key))).first() is not None:
        raise InvalidRequestError(f"the key {key!r} is taken; choose another", field="key")


def _checked_permissions(permissions: Sequence[str]) -> tuple[str, ...]:
    unknown = [item for item in permissions if item not in PERMISSIONS]
    if unknown:
        raise InvalidRequestError(
            f"{unknown[0]!r} is no permission; there are: {', '.join(PERMISSIONS)}", field="permissions"
        )
    return tuple(sorted(set(permissions)))


def _email_of(new: NewUser) -> str:
    if not new.name.strip():
        raise InvalidRequestError("the name is empty", field="name")
    if new.is_system:
        if not _SYSTEM_NAME.fullmatch(new.name):
            raise InvalidRequestError(
                f"a service account is named with a-z, 0-9, '_' and '-', got {new.name!r}", field="name"
            )
        return new.email or f"{new.name}@{_SYSTEM_DOMAIN}"
    if not new.email or not _EMAIL.fullmatch(new.email):
        raise InvalidRequestError(f"{new.email!r} is no e-mail address", field="email")
    return new.email.lower()
