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
from harmonia.server.db.logins import LoginSession
from harmonia.server.db.people import ApiKey, Role, RolePermission, Team, TeamMember, User
from harmonia.server.services.access import (
    ADMIN_TEAM,
    Caller,
    by_id_or_key,
    key_row,
    new_api_key,
    refuse_jobs,
    require_admin,
    require_anywhere,
    require_no_more_than,
    team_permissions,
)
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_email, checked_key, checked_name, key_from
from harmonia.server.services.permissions import DEFAULT_ROLES, PERMISSIONS

_SYSTEM_NAME = re.compile(r"[a-z0-9_-]+")
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
        email = checked_email(email)
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

    async def recover(self, email: str | None, *, revoke_others: bool) -> tuple[str, str]:
        """A further key of an admin who has lost theirs, and whose it is: for who has the database in their hands.

        email: None for whoever has been an admin for longest. revoke_others: refuse the admin's other keys.
        """
        owner = await self.operator(email)
        async with self._database.begin() as session:
            api_key = new_api_key()
            row, moment = key_row(owner.user_id, api_key), now_ms()
            if revoke_others:
                valid = (ApiKey.user_id == owner.user_id, ApiKey.job_id.is_(None), ApiKey.revoked_at.is_(None))
                await session.execute(update(ApiKey).where(*valid).values(revoked_at=moment))
            session.add(row)
            record(session, None, "key.recover", f"user/{owner.email}", hint=row.hint, others_revoked=revoke_others)
        return owner.email, api_key

    async def operator(self, email: str | None = None) -> Caller:
        """Whoever has been in the team `admin` for longest: as whom the command line of the server acts.

        email: the one of them with this address. Errors: EntityNotFoundError.
        """
        query = (
            select(User.id, User.email)
            .join(TeamMember, TeamMember.user_id == User.id)
            .join(Team, Team.id == TeamMember.team_id)
            .where(Team.key == ADMIN_TEAM, User.deleted_at.is_(None), User.is_system.is_(False))
            .order_by(TeamMember.created_at, User.id)
        )
        if email is not None:
            query = query.where(User.email == email.lower())
        row = await self._database.first(query.limit(1), {})
        if row is None and email is not None:
            raise EntityNotFoundError(f"{email!r} is no person in the team {ADMIN_TEAM!r}", entity="user")
        if row is None:
            raise EntityNotFoundError(f"Nobody is left in the team {ADMIN_TEAM!r}", entity="user")
        return Caller(row.id, row.email)

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
        email, name = _email_of(new), checked_name(new.name)
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "admin:manage_users")
            existing = (await session.execute(select(User).where(User.email == email))).scalar_one_or_none()
            if existing is not None and existing.deleted_at is None:
                raise InvalidRequestError(f"somebody with the address {email!r} exists already", field="email")
            user = existing or User(email=email)
            user.name, user.is_system, user.deleted_at = name, new.is_system, None
            session.add(user)
            await session.flush()
            for team, role in new.teams:
                await add_member(session, caller, user, team, role)
            api_key = new_api_key() if new.with_key else None
            if api_key is not None:
                session.add(key_row(user.id, api_key))
            record(session, caller, "user.create", f"user/{email}", is_system=new.is_system)
            return user, api_key

    async def delete_user(self, caller: Caller, user: str) -> User:
        """Nobody can call with the user's keys from now on."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "admin:manage_users")
            found = await named_user(session, user)
            if found.id == caller.user_id:
                raise InvalidRequestError("nobody can delete themselves; ask another admin", field="user")
            # Whoever deletes somebody takes them out of their teams.
            query = select(Team).join(TeamMember, TeamMember.team_id == Team.id).where(TeamMember.user_id == found.id)
            teams = (await session.execute(query)).scalars().all()
            for team in teams:
                await _require_team_manager(session, caller, team, found)
            if not teams:
                await require_admin(session, caller, "admin:manage_users")
            found.deleted_at = now_ms()
            await session.execute(delete(LoginSession).where(LoginSession.user_id == found.id))
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
            found = await named_user(session, user)
            team_row = await add_member(session, caller, found, team, role)
            record(session, caller, "team.set_member", f"team/{team_row.key}", user=found.email, role=role)
            user_id = found.id
        memberships = (await self.memberships([user_id]))[user_id]
        return next(item for item in memberships if item.team.id == team_row.id)

    async def remove_member(self, caller: Caller, user: str, team: str) -> User:
        """Take a user out of a team."""
        async with self._database.begin() as session:
            found = await named_user(session, user)
            team_row = await drop_member(session, caller, found, team)
            record(session, caller, "team.remove_member", f"team/{team_row.key}", user=found.email)
            return found

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
            name = checked_name(name)
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
            name = checked_name(name)
            key = checked_key(key) if key else key_from(name)
            await _refuse_taken(session, Role, key)
            role = Role(key=key, name=name)
            session.add(role)
            await session.flush()
            wanted = _checked_permissions(permissions)
            session.add_all(RolePermission(role_id=role.id, permission=item) for item in wanted)
            await session.flush()
            await require_no_more_than(session, await team_permissions(session, caller, ADMIN_TEAM), [role.id])
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
            row.name = row.name if name is None else checked_name(name)
            if permissions is not None:
                wanted, own = _checked_permissions(permissions), await team_permissions(session, caller, ADMIN_TEAM)
                await require_no_more_than(session, own, [row.id])
                await session.execute(delete(RolePermission).where(RolePermission.role_id == row.id))
                session.add_all(RolePermission(role_id=row.id, permission=item) for item in wanted)
                await session.flush()
                await require_no_more_than(session, own, [row.id])
                await _require_admin_left(session)
            await session.flush()
            details = {"name": name, "permissions": None if permissions is None else list(permissions)}
            changed = {key: value for key, value in details.items() if value is not None}
            record(session, caller, "role.update", f"role/{row.key}", **changed)
            return (await _with_permissions(session, [row]))[row.id]


async def add_member(session: AsyncSession, caller: Caller, user: User, team: str, role: str) -> Team:
    """Put a user into a team, or change the role there, inside a transaction."""
    team_row, role_row = await _team(session, team), await _role(session, role)
    await _require_team_manager(session, caller, team_row, user, role_row)
    query = select(TeamMember).where(TeamMember.user_id == user.id, TeamMember.team_id == team_row.id)
    member = (await session.execute(query)).scalar_one_or_none()
    if member is None:
        session.add(TeamMember(user_id=user.id, team_id=team_row.id, role_id=role_row.id))
    else:
        member.role_id = role_row.id
    await session.flush()
    await _require_admin_left(session)
    return team_row


async def drop_member(session: AsyncSession, caller: Caller, user: User, team: str) -> Team:
    """Take a user out of a team, inside a transaction; nothing happens to whoever is not in it."""
    row = await _team(session, team)
    await _require_team_manager(session, caller, row, user)
    await session.execute(delete(TeamMember).where(TeamMember.user_id == user.id, TeamMember.team_id == row.id))
    await _require_admin_left(session)
    return row


async def _require_team_manager(
    session: AsyncSession, caller: Caller, team: Team, user: User, role: Role | None = None
) -> None:
    """Who may change what a user is in a team: members of the reserved team, and in their own teams those with the
    permission. Neither gives a role, nor touches somebody, with permissions that they lack themselves."""
    refuse_jobs(caller)
    own = await team_permissions(session, caller, team.key)
    as_admin = await team_permissions(session, caller, ADMIN_TEAM)
    if "admin:manage_teams" in as_admin:
        own |= as_admin
    elif "team:manage_members" not in own:
        await require_admin(session, caller, "admin:manage_teams")
    current = select(TeamMember.role_id).where(TeamMember.user_id == user.id, TeamMember.team_id == team.id)
    roles = set((await session.execute(current)).scalars()) | ({role.id} if role is not None else set())
    await require_no_more_than(session, own, roles)


async def _require_admin_left(session: AsyncSession) -> None:
    """Raise `InvalidRequestError` if nobody could manage teams any longer."""
    query = (
        select(TeamMember.id)
        .join(Team, Team.id == TeamMember.team_id)
        .join(RolePermission, RolePermission.role_id == TeamMember.role_id)
        .where(Team.key == ADMIN_TEAM, RolePermission.permission == "admin:manage_teams")
    )
    if (await session.execute(query.limit(1))).first() is None:
        raise InvalidRequestError(
            f"the team {ADMIN_TEAM!r} would have nobody left who manages teams; add another admin first", field="team"
        )


async def named_user(session: AsyncSession, text: str) -> User:
    """Somebody by id or e-mail address, inside a transaction; `EntityNotFoundError` for those that were deleted too."""
    query = select(User).where(by_id_or_key(User.id, User.email, text.lower()), User.deleted_at.is_(None))
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
    if new.is_system:
        if not _SYSTEM_NAME.fullmatch(new.name):
            raise InvalidRequestError(
                f"a service account is named with a-z, 0-9, '_' and '-', got {new.name!r}", field="name"
            )
        return checked_email(new.email or f"{new.name}@{_SYSTEM_DOMAIN}")
    return checked_email(new.email or "")
