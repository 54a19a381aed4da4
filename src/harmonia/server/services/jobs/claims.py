"""Jobs change hands in the database: whoever works on one has claimed it, and stops when somebody cancels it."""

from __future__ import annotations

import uuid
from collections.abc import Collection

from sqlalchemy import func, select, update

from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job


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
