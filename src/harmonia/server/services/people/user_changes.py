"""Changing users, and bringing back those that were deleted."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.people import AuditEntry, User
from harmonia.server.services.access import Caller, by_id_or_key, require_admin
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_name
from harmonia.server.services.people.people import add_member, drop_member, named_user


@dataclass(frozen=True, slots=True)
class UserChange:
    """What shall be different. add_teams: teams and roles by id or key; None and empty: stays as it is."""

    name: str | None = None
    add_teams: Sequence[tuple[str, str]] = ()
    remove_teams: Sequence[str] = ()


class UserChanges:
    """Changes users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def update(self, caller: Caller, user: str, change: UserChange) -> User:
        """Change a name (one's own, or with `admin:manage_users`) and the teams, as whoever manages these may."""
        if change.name is None and not (change.add_teams or change.remove_teams):
            raise InvalidRequestError("nothing is changed; give a name, or teams to add or remove", field="input")
        async with self._database.begin() as session:
            found = await named_user(session, user)
            if change.name is not None:
                if found.id != caller.user_id:
                    await require_admin(session, caller, "admin:manage_users")
                found.name = checked_name(change.name)
            for team, role in change.add_teams:
                await add_member(session, caller, found, team, role)
            for team in change.remove_teams:
                await drop_member(session, caller, found, team)
            record(session, caller, "user.update", f"user/{found.email}", name=change.name)
            return found

    async def reactivate(self, caller: Caller, user: str) -> User:
        """Let a user in again who was deleted: without teams, and the old keys stay revoked."""
        async with self._database.begin() as session:
            await require_admin(session, caller, "admin:manage_users")
            query = select(User).where(by_id_or_key(User.id, User.email, user.lower()))
            found = (await session.execute(query)).scalar_one_or_none()
            if found is None:
                raise EntityNotFoundError(f"User {user!r} does not exist", entity="user")
            if found.deleted_at is None:
                raise InvalidRequestError(f"{found.email} was not deleted", field="user")
            found.deleted_at = None
            record(session, caller, "user.reactivate", f"user/{found.email}")
            return found

    async def activity(self, user_id: uuid.UUID) -> tuple[int | None, int | None]:
        """When a user first and last asked a model or changed something, in UTC milliseconds; None: never."""
        moments: list[int] = []
        async with self._database.read() as session:
            for moment, own in (
                (Completion.created_at, Completion.created_by == user_id),
                (AuditEntry.created_at, AuditEntry.user_id == user_id),
            ):
                row = (await session.execute(select(func.min(moment), func.max(moment)).where(own))).one()
                moments += [found for found in row if found is not None]
        return (min(moments), max(moments)) if moments else (None, None)
