"""Projects and who may enter them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError, PermissionDeniedError
from harmonia.server.db.database import Database
from harmonia.server.db.people import Role, RolePermission, Team, TeamMember
from harmonia.server.db.projects import Project, ProjectShare
from harmonia.server.services.access import (
    ADMIN_TEAM,
    Caller,
    ProjectAccess,
    by_id_or_key,
    project_permissions,
    require_anywhere,
    require_in_project,
    require_no_more_than,
    team_permissions,
    visible_projects,
)
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_key, checked_name, key_from


@dataclass(frozen=True, slots=True)
class ShareWish:
    """A team that shall be let in, by id or key."""

    team: str
    role: str
    is_owner: bool = False


@dataclass(frozen=True, slots=True)
class ShareInfo:
    """A team that is let in."""

    team: Team
    role_id: uuid.UUID
    is_owner: bool


@dataclass(frozen=True, slots=True)
class NewProject:
    """What a project is made of. team: its owner, by id or key; None: the creator's only team besides `admin`."""

    name: str
    key: str | None = None
    description: str = ""
    team: str | None = None
    settings: dict[str, object] = field(default_factory=dict)


class Projects:
    """Everything about projects themselves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, new: NewProject) -> Project:
        """A project, owned by a team."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "project:create")
            name = checked_name(new.name)
            key = checked_key(new.key) if new.key else key_from(name)
            if "/" in key:
                raise InvalidRequestError(
                    f"the key of a project holds no '/', since models are named project/model; got {key!r}", field="key"
                )
            if (await session.execute(select(Project.id).where(Project.key == key))).first() is not None:
                raise InvalidRequestError(f"the key {key!r} is taken; choose another", field="key")
            member = await _owner(session, caller, new.team)
            project = Project(key=key, name=name, description=new.description, settings=new.settings)
            session.add(project)
            await session.flush()
            session.add(
                ProjectShare(project_id=project.id, team_id=member.team_id, role_id=member.role_id, is_owner=True)
            )
            record(session, caller, "project.create", f"project/{key}")
            return project

    async def all(self, caller: Caller, *, archived: bool = False) -> list[Project]:
        """Those that the caller may read."""
        async with self._database.read() as session:
            is_archived = Project.archived_at.is_not(None) if archived else Project.archived_at.is_(None)
            query = select(Project).where(Project.id.in_(visible_projects(caller)), is_archived)
            return list((await session.execute(query.order_by(Project.created_at, Project.key))).scalars())

    async def find(self, caller: Caller, project: str) -> Project | None:
        """One by id or key; None if there is none that the caller may read."""
        async with self._database.read() as session:
            query = select(Project).where(
                by_id_or_key(Project.id, Project.key, project), Project.id.in_(visible_projects(caller))
            )
            return (await session.execute(query)).scalar_one_or_none()

    async def permissions(self, caller: Caller, project_id: uuid.UUID) -> list[str]:
        """What the caller may do there."""
        async with self._database.read() as session:
            return await project_permissions(session, caller, project_id)

    async def shares(self, project_id: uuid.UUID) -> list[ShareInfo]:
        """The teams that are let in."""
        async with self._database.read() as session:
            query = (
                select(ProjectShare, Team)
                .join(Team, Team.id == ProjectShare.team_id)
                .where(ProjectShare.project_id == project_id)
                .order_by(ProjectShare.is_owner.desc(), Team.key)
            )
            rows = (await session.execute(query)).all()
        return [ShareInfo(team, share.role_id, share.is_owner) for share, team in rows]

    async def share(self, caller: Caller, project: str, wishes: Sequence[ShareWish]) -> Project:
        """Replace the teams that are let in; only an owner may, and one owner must remain.

        Nobody lets a team do more than they may themselves in the project; teams that are let in already may stay.
        """
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:share")
            await _require_owner(session, caller, access.project_id)
            if not any(wish.is_owner for wish in wishes):
                raise InvalidRequestError("a project needs an owner; mark at least one team as owner", field="shares")
            named = [
                (await _named(session, Team, wish.team), await _named(session, Role, wish.role)) for wish in wishes
            ]
            keys = [team.key for team, _ in named]
            if len(set(keys)) < len(keys):
                raise InvalidRequestError(f"a team is named twice: {', '.join(keys)}", field="shares")
            shares = [
                ProjectShare(project_id=access.project_id, team_id=team.id, role_id=role.id, is_owner=wish.is_owner)
                for wish, (team, role) in zip(wishes, named, strict=True)
            ]
            await _require_no_more(session, access, shares)
            await session.execute(delete(ProjectShare).where(ProjectShare.project_id == access.project_id))
            session.add_all(shares)
            teams = {
                team.key: "owner" if share.is_owner else role.key
                for share, (team, role) in zip(shares, named, strict=True)
            }
            record(session, caller, "project.share", f"project/{access.project_key}", teams=teams)
            found = await session.get(Project, access.project_id)
            assert found is not None
            return found


async def _require_no_more(session: AsyncSession, access: ProjectAccess, shares: Sequence[ProjectShare]) -> None:
    """What is new in the shares permits nobody more than the caller has."""
    query = select(ProjectShare).where(ProjectShare.project_id == access.project_id)
    before = {(row.team_id, row.role_id, row.is_owner) for row in (await session.execute(query)).scalars()}
    owners = {team_id for team_id, _, is_owner in before if is_owner}
    # Members of an owning team act with their own roles.
    new_owners = [row.team_id for row in shares if row.is_owner and row.team_id not in owners]
    members = select(TeamMember.role_id).where(TeamMember.team_id.in_(new_owners))
    roles = set((await session.execute(members)).scalars())
    roles |= {row.role_id for row in shares if not row.is_owner and (row.team_id, row.role_id, False) not in before}
    own = await project_permissions(session, access.caller, access.project_id)
    await require_no_more_than(session, own, roles)


async def _owner(session: AsyncSession, caller: Caller, team: str | None) -> TeamMember:
    """The membership of the team that will own a project: one whose role lets the caller make projects."""
    query = (
        select(TeamMember, Team)
        .join(Team, Team.id == TeamMember.team_id)
        .join(RolePermission, RolePermission.role_id == TeamMember.role_id)
        .where(TeamMember.user_id == caller.user_id, RolePermission.permission == "project:create")
        .order_by(TeamMember.created_at, Team.key)
    )
    members = {row.key: member for member, row in (await session.execute(query)).all()}
    as_admin = members.get(ADMIN_TEAM)
    if team is None:
        others = [key for key in members if key != ADMIN_TEAM] or [ADMIN_TEAM]
        return members["default" if "default" in others else others[0]]
    wanted = await _named(session, Team, team)
    if wanted.key in members:
        return members[wanted.key]
    if as_admin is not None:
        return TeamMember(team_id=wanted.id, role_id=as_admin.role_id)
    raise PermissionDeniedError(
        f"{caller.email} may not create projects as a member of {team!r}; name a team in which you may"
    )


async def _require_owner(session: AsyncSession, caller: Caller, project_id: uuid.UUID) -> None:
    """The permission must come from an owning team: who has it through a share may not share further."""
    query = (
        select(ProjectShare.team_id)
        .join(TeamMember, TeamMember.team_id == ProjectShare.team_id)
        .join(RolePermission, RolePermission.role_id == TeamMember.role_id)
        .where(
            TeamMember.user_id == caller.user_id,
            ProjectShare.project_id == project_id,
            ProjectShare.is_owner,
            RolePermission.permission == "project:share",
        )
    )
    if (await session.execute(query.limit(1))).first() is not None:
        return
    if "project:share" not in await team_permissions(session, caller, ADMIN_TEAM):
        raise PermissionDeniedError("only members of an owning team may share a project further")


Named = TypeVar("Named", Team, Role)


async def _named(session: AsyncSession, table: type[Named], text: str) -> Named:
    row: Named | None = (
        await session.execute(select(table).where(by_id_or_key(table.id, table.key, text)))
    ).scalar_one_or_none()
    if row is None:
        kind = table.__name__
        raise EntityNotFoundError(f"{kind} {text!r} does not exist", entity=kind.lower())
    return row
