"""Projects and who may enter them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.people import Role, Team, TeamMember
from harmonia.server.db.projects import Project, ProjectShare
from harmonia.server.services.access import (
    Caller,
    by_id_or_key,
    is_admin,
    project_permissions,
    require_anywhere,
    require_in_project,
    visible_projects,
)
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_key, key_from


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
            key = checked_key(new.key) if new.key else key_from(new.name)
            if "/" in key:
                raise InvalidRequestError(
                    f"the key of a project holds no '/', since models are named project/model; got {key!r}", field="key"
                )
            if (await session.execute(select(Project.id).where(Project.key == key))).first() is not None:
                raise InvalidRequestError(f"the key {key!r} is taken; choose another", field="key")
            member = await _owner(session, caller, new.team)
            project = Project(key=key, name=new.name, description=new.description, settings=new.settings)
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
        """Replace the teams that are let in; only an owner may, and one owner must remain."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:share")
            await _require_owner(session, caller, access.project_id)
            if not any(wish.is_owner for wish in wishes):
                raise InvalidRequestError("a project needs an owner; mark at least one team as owner", field="shares")
            await session.execute(delete(ProjectShare).where(ProjectShare.project_id == access.project_id))
            for wish in wishes:
                team, role = await _named(session, Team, wish.team), await _named(session, Role, wish.role)
                session.add(
                    ProjectShare(project_id=access.project_id, team_id=team.id, role_id=role.id, is_owner=wish.is_owner)
                )
            teams = {wish.team: wish.role for wish in wishes}
            record(session, caller, "project.share", f"project/{access.project_key}", teams=teams)
            found = await session.get(Project, access.project_id)
            assert found is not None
            return found


async def _owner(session: AsyncSession, caller: Caller, team: str | None) -> TeamMember:
    """The membership of the team that will own a project."""
    query = (
        select(TeamMember, Team).join(Team, Team.id == TeamMember.team_id).where(TeamMember.user_id == caller.user_id)
    )
    rows = (await session.execute(query.order_by(TeamMember.created_at, Team.key))).all()
    if team is None:
        usual = [(member, row) for member, row in rows if row.key != "admin"] or list(rows)
        default = [member for member, row in usual if row.key == "default"] or [member for member, _ in usual]
        if not default:
            raise InvalidRequestError(f"{caller.email} is in no team; name the team that owns it", field="team")
        return default[0]
    wanted = await _named(session, Team, team)
    member = next((member for member, _ in rows if member.team_id == wanted.id), None)
    if member is not None:
        return member
    if await is_admin(session, caller):
        return TeamMember(team_id=wanted.id, role_id=rows[0][0].role_id)
    raise InvalidRequestError(f"{caller.email} is not a member of {team!r}; name a team of your own", field="team")


async def _require_owner(session: AsyncSession, caller: Caller, project_id: uuid.UUID) -> None:
    query = (
        select(ProjectShare.team_id)
        .join(TeamMember, TeamMember.team_id == ProjectShare.team_id)
        .where(
            TeamMember.user_id == caller.user_id,
            ProjectShare.project_id == project_id,
            ProjectShare.is_owner,
        )
    )
    if (await session.execute(query)).first() is None and not await is_admin(session, caller):
        raise InvalidRequestError("only members of an owning team may share a project further", field="shares")


Named = TypeVar("Named", Team, Role)


async def _named(session: AsyncSession, table: type[Named], text: str) -> Named:
    row: Named | None = (
        await session.execute(select(table).where(by_id_or_key(table.id, table.key, text)))
    ).scalar_one_or_none()
    if row is None:
        kind = table.__name__
        raise EntityNotFoundError(f"{kind} {text!r} does not exist", entity=kind.lower())
    return row
