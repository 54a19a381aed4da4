"""Who changed what: one row for each change, in the transaction of the change."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.people import AuditEntry
from harmonia.server.services.access import Caller


def record(session: AsyncSession, caller: Caller | None, action: str, entity: str, **details: object) -> None:
    """Note a change. caller: None for the system itself. entity: such as `team/support`; details: no secrets."""
    session.add(
        AuditEntry(user_id=None if caller is None else caller.user_id, action=action, entity=entity, details=details)
    )
