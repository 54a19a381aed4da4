"""Jobs change hands in the database: whoever works on one has claimed it, and stops when somebody cancels it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection

from sqlalchemy import func, select, update
from sqlalchemy.exc import InterfaceError, OperationalError

from harmonia.errors import UnavailableError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job

log = get_logger(__name__)

_AGAIN_S = 5.0


async def claim(database: Database, job_id: uuid.UUID, of: Collection[str] = ("PENDING",)) -> bool:
    """Whether the job was in one of these states, and runs from now on. Of two who claim it, one gets it."""
    started = update(Job).where(Job.id == job_id, Job.status.in_(of))
    started = started.values(status="RUNNING", started_at=func.coalesce(Job.started_at, now_ms()))
    async with database.begin() as session:
        return (await session.execute(started.returning(Job.id))).first() is not None


async def still_runs(database: Database, job_id: uuid.UUID) -> bool:
    """Whether nobody has canceled it since it was claimed."""
    async with database.read() as session:
        status = (await session.execute(select(Job.status).where(Job.id == job_id))).scalar_one()
    return status == "RUNNING"


async def until_noted(what: str, note: Callable[[], Awaitable[None]]) -> None:
    """Write down how a job ended, again and again while the database is away: else it would seem to run for ever."""
    while True:
        try:
            return await note()
        except (UnavailableError, OSError, InterfaceError, OperationalError) as error:
            reason = str(error).partition("\n")[0]
            log.error("how %s ended cannot be noted (%s); again in %g s", what, reason, _AGAIN_S)
        await asyncio.sleep(_AGAIN_S)
