"""The keys that users call with."""

from __future__ import annotations

import uuid

from sqlalchemy import or_, select, update

from harmonia.errors import EntityNotFoundError, PermissionDeniedError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.people import ApiKey, User
from harmonia.server.services.access import (
    ADMIN_TEAM,
    Caller,
    by_id_or_key,
    key_row,
    new_api_key,
    refuse_jobs,
    require_admin,
    team_permissions,
)
from harmonia.server.services.audit import record


class ApiKeys:
    """Everything about keys; of each only a digest and the first letters are kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self, caller: Caller) -> list[ApiKey]:
        """The caller's own, newest first, revoked ones included; keys of jobs are not theirs to manage."""
        query = select(ApiKey).where(ApiKey.user_id == caller.user_id, ApiKey.job_id.is_(None))
        async with self._database.read() as session:
            return list((await session.execute(query.order_by(ApiKey.created_at.desc(), ApiKey.id))).scalars())

    async def create(self, caller: Caller, user: str, previous_end_ms: int | None = None) -> tuple[ApiKey, str]:
        """A further key, and its text, which is shown this once.

        user: the caller, or a service account, whose keys admins make; nobody gets the key of another person.
        previous_end_ms: when the user's keys until now stop to work, in UTC milliseconds; None: they go on.
        """
        refuse_jobs(caller)
        async with self._database.begin() as session:
            query = select(User).where(by_id_or_key(User.id, User.email, user.lower()), User.deleted_at.is_(None))
            owner = (await session.execute(query)).scalar_one_or_none()
            if owner is None:
                raise EntityNotFoundError(f"User {user!r} does not exist", entity="user")
            if owner.id != caller.user_id:
                await require_admin(session, caller, "admin:manage_users")
                if not owner.is_system:
                    raise PermissionDeniedError(f"only {owner.email} makes keys of {owner.email}")
            if previous_end_ms is not None:
                earlier = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > previous_end_ms)
                await session.execute(
                    update(ApiKey)
                    .where(ApiKey.user_id == owner.id, ApiKey.job_id.is_(None), earlier)
                    .values(expires_at=previous_end_ms)
                )
            api_key = new_api_key()
            row = key_row(owner.id, api_key)
            session.add(row)
            await session.flush()
            record(session, caller, "key.create", f"user/{owner.email}", hint=row.hint, previous_end_ms=previous_end_ms)
            return row, api_key

    async def revoke(self, caller: Caller, key: uuid.UUID) -> ApiKey:
        """A key of the caller, or, for admins, of anybody, is refused from the next call on."""
        refuse_jobs(caller)
        async with self._database.begin() as session:
            row = await session.get(ApiKey, key)
            is_own = row is not None and row.user_id == caller.user_id
            if row is None or not (
                is_own or "admin:manage_users" in await team_permissions(session, caller, ADMIN_TEAM)
            ):
                raise EntityNotFoundError(f"API key {key} does not exist", entity="key")
            row.revoked_at = row.revoked_at or now_ms()
            record(session, caller, "key.revoke", f"key/{row.id}", hint=row.hint)
            return row
