"""Who changed what: one row for each change, in the transaction of the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.database import Database
from harmonia.server.db.people import AuditEntry, User
from harmonia.server.services.access import Caller, by_id_or_key, require_admin
from harmonia.server.services.keyset import Keyset, Order, Page, PageWish


def record(session: AsyncSession, caller: Caller | None, action: str, entity: str, **details: object) -> None:
    """Note a change. caller: None for the system itself. entity: such as `team/support`; details: no secrets."""
    session.add(
        AuditEntry(user_id=None if caller is None else caller.user_id, action=action, entity=entity, details=details)
    )


@dataclass(frozen=True, slots=True)
class AuditWish:
    """Which entries are wanted; None: all."""

    action: str | None = None
    """Such as `team.create`; `team.*` for all that begin so."""
    entity: str | None = None
    """Such as `team/support`; `team/*` for all teams."""
    user: str | None = None
    """Who did it, by id or e-mail address."""
    since_ms: int | None = None
    """UTC milliseconds, inclusive."""
    until_ms: int | None = None
    """UTC milliseconds, exclusive."""


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries with who made them; None: the system itself."""

    entries: list[tuple[AuditEntry, User | None]]
    page: Page
    total: int


class AuditLog:
    """Reads what `record` wrote."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, caller: Caller, wish: AuditWish, page: PageWish) -> AuditPage:
        """Newest first; for members of the reserved team with `admin:read_audit`."""
        columns = {"created_at": AuditEntry.created_at, "id": AuditEntry.id}
        newest = Keyset(columns, [Order("created_at", descending=True)], "id")
        query: Select[*tuple[Any, ...]] = select(AuditEntry, User).outerjoin(User, User.id == AuditEntry.user_id)
        for column, wanted in ((AuditEntry.action, wish.action), (AuditEntry.entity, wish.entity)):
            if wanted is not None and wanted.endswith("*"):
                query = query.where(column.startswith(wanted[:-1], autoescape=True))
            elif wanted is not None:
                query = query.where(column == wanted)
        if wish.user is not None:
            query = query.where(by_id_or_key(User.id, User.email, wish.user.lower()))
        if wish.since_ms is not None:
            query = query.where(AuditEntry.created_at >= wish.since_ms)
        if wish.until_ms is not None:
            query = query.where(AuditEntry.created_at < wish.until_ms)
        async with self._database.read() as session:
            await require_admin(session, caller, "admin:read_audit")
            total = (await session.execute(select(func.count()).select_from(query.subquery()))).scalar_one()
            found = await newest.read(session, query, page)
        return AuditPage([(entry, user) for entry, user in found.rows], found, total)
