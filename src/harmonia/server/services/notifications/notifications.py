"""Telling integrations what happens: events become rows of an outbox, which a task delivers until they are received.

Since a row is written with the change that it tells of, a restart loses nothing; since it is marked only after it was
received, a message can arrive twice, each time under the same id.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, event, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.config.control import Notifications as Settings
from harmonia.errors import HarmoniaError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.integrations import Delivery, Integration
from harmonia.server.db.people import Team, TeamMember
from harmonia.server.db.projects import ProjectShare
from harmonia.server.services.access import ADMIN_TEAM
from harmonia.server.services.notifications.channels import Channels
from harmonia.server.services.notifications.topics import Scope, Subscription, admits, checked_topic, matches
from harmonia.server.services.outbound import OutboundError
from harmonia.server.services.secrets import Secrets

WAITING, SENT, FAILED = "waiting", "sent", "failed"
_AT_ONCE = 16
_LOOK_S = 2.0
"""How long a message of another process may lie before this one sees it."""
_FIRST_WAIT_MS = 1_000
_LONGEST_WAIT_MS = 15 * 60 * 1_000
_LEASE_MS = 60_000
"""At least so long a message that is being sent is not taken again; if its process dies, it is afterwards."""
_KEEP_MS = 7 * 24 * 3600 * 1_000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A message that shall be sent now."""

    id: uuid.UUID
    provider: str
    sealed: str
    retries: bool
    attempts: int
    message: Mapping[str, Any]


class Notifications:
    """Publishes events and delivers them."""

    def __init__(self, settings: Settings, database: Database, secrets: Secrets) -> None:
        self._settings, self._database, self._secrets = settings, database, secrets
        self._channels = Channels(settings)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver, what an earlier process left included."""
        self._task = asyncio.create_task(self._deliver_forever())

    async def close(self) -> None:
        """Stop delivering; what is on its way is sent again by the next process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channels.close()

    async def publish(
        self, topic: str, scope: Scope, payload: Mapping[str, Any], session: AsyncSession | None = None
    ) -> tuple[uuid.UUID, int]:
        """Tell everybody who subscribed. The event's id, and to how many integrations it goes.

        session: the transaction of the change that is told, so that both happen or neither; None: one of its own, which
        must not be asked for inside another one. payload: what JSON can hold.
        """
        if session is None:
            async with self._database.begin() as own:
                return await self._queue(own, topic, scope, payload)
        return await self._queue(session, topic, scope, payload)

    async def _queue(
        self, session: AsyncSession, topic: str, scope: Scope, payload: Mapping[str, Any]
    ) -> tuple[uuid.UUID, int]:
        checked_topic(topic, "topic")
        event_id = uuid.uuid4()
        # Databases refuse what Python writes for NaN and Infinity.
        plain = json.loads(json.dumps(payload, default=str), parse_constant=str)
        reached = await _reached(session, scope)
        teams = {team for found in reached.values() for team in found}
        query = select(Integration).where(Integration.enabled, Integration.provider != "github")
        if not scope.organization:
            query = query.where(Integration.team_id.in_(teams))
        count = 0
        for item in (await session.execute(query)).scalars():
            if _wants(item, topic, plain, reached):
                session.add(Delivery(integration_id=item.id, event_id=event_id, topic=topic, payload=plain))
                count += 1
        # Not before: until then there is nothing to deliver.
        event.listen(session.sync_session, "after_commit", lambda _: self._news.set(), once=True)
        return event_id, count

    # ------------------------------------------------------------------------------------------ delivering

    async def _deliver_forever(self) -> None:
        while True:
            self._news.clear()
            try:
                taken = await self._take()
                await asyncio.gather(*(self._deliver(item) for item in taken))
            except Exception:  # whatever it is, the next round may succeed
                log.exception("delivering notifications failed")
                taken = []
            if not taken:
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._news.wait()
        except TimeoutError:
            return

    async def _take(self) -> list[_Taken]:
        """Messages that are due, out of reach of other processes for a while."""
        now, lease_ms = now_ms(), max(_LEASE_MS, round(2_000 * self._settings.seconds))
        query = (
            select(Delivery, Integration)
            .join(Integration, Integration.id == Delivery.integration_id)
            .where(Delivery.state == WAITING, Delivery.due_at <= now)
            .order_by(Delivery.due_at)
            .limit(_AT_ONCE)
        )
        async with self._database.read() as session:
            if (await session.execute(query)).first() is None:
                return []
        async with self._database.begin() as session:
            rows = (await session.execute(query.with_for_update(of=Delivery, skip_locked=True))).all()
            for delivery, _ in rows:
                delivery.due_at = now + lease_ms
                delivery.attempts += 1
            await session.execute(delete(Delivery).where(Delivery.state != WAITING, Delivery.due_at < now - _KEEP_MS))
            return [_taken(delivery, integration) for delivery, integration in rows]

    async def _deliver(self, item: _Taken) -> None:
        error, is_passing = None, False
        try:
            connection = json.loads(self._secrets.open(item.sealed))
            await self._channels.send(item.provider, connection, item.message)
        except OutboundError as failed:
            error, is_passing = str(failed), failed.is_passing
        except HarmoniaError as failed:
            error = failed.message
        except Exception as failed:
            log.exception("a notification of %r met an error of our own", item.message["topic"])
            error, is_passing = repr(failed), True
        async with self._database.begin() as session:
            row = await session.get(Delivery, item.id)
            if row is None:  # its integration was deleted meanwhile
                return
            row.error = error
            if error is None:
                row.state, row.ended_at = SENT, now_ms()
            elif is_passing and item.retries and item.attempts < self._settings.attempts:
                row.due_at = now_ms() + min(_FIRST_WAIT_MS * 2 ** (item.attempts - 1), _LONGEST_WAIT_MS)
            else:
                row.state, row.ended_at = FAILED, now_ms()
                log.error("a notification of %r was given up after %d attempts: %s", row.topic, item.attempts, error)


def _taken(delivery: Delivery, integration: Integration) -> _Taken:
    message = {
        "id": str(delivery.event_id),
        "topic": delivery.topic,
        "created_at": delivery.created_at,
        "payload": delivery.payload,
    }
    sealed, retries = integration.sealed, integration.retries
    return _Taken(delivery.id, integration.provider, sealed, retries, delivery.attempts, message)


def _wants(
    item: Integration, topic: str, payload: Mapping[str, Any], reached: Mapping[str, Sequence[uuid.UUID]]
) -> bool:
    for each in item.subscriptions:
        wish = Subscription(each["topic_pattern"], each["scope"], each["target_filter"])
        is_reached = wish.scope in reached and (wish.scope == "ORGANIZATION" or item.team_id in reached[wish.scope])
        if is_reached and matches(wish.topic_pattern, topic) and admits(wish.target_filter, payload):
            return True
    return False


async def _reached(session: AsyncSession, scope: Scope) -> dict[str, list[uuid.UUID]]:
    """The teams that an event reaches in each of the scopes that a subscription can have."""
    reached: dict[str, list[uuid.UUID]] = {"ORGANIZATION": []} if scope.organization else {}
    if scope.users:
        query = select(TeamMember.team_id).where(TeamMember.user_id.in_(scope.users))
        reached["USER"] = list((await session.execute(query)).scalars())
    teams = list(scope.teams)
    if scope.project is not None:
        shares = select(ProjectShare.team_id).where(ProjectShare.project_id == scope.project)
        teams += (await session.execute(shares)).scalars()
    if teams:
        reached["TEAM"] = teams
    if scope.admin:
        reached["ADMIN"] = list((await session.execute(select(Team.id).where(Team.key == ADMIN_TEAM))).scalars())
    return reached
