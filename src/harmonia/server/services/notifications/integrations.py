"""A team's connections to services outside."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError, PermissionDeniedError
from harmonia.server.db.database import Database
from harmonia.server.db.integrations import Delivery, Integration
from harmonia.server.db.people import Team
from harmonia.server.services.access import (
    ADMIN_TEAM,
    Caller,
    by_id_or_key,
    require_admin,
    require_anywhere,
    team_permissions,
)
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_name
from harmonia.server.services.notifications.connections import (
    PROVIDERS,
    Connection,
    checked_connection,
    shown_connection,
)
from harmonia.server.services.notifications.notifications import FAILED, SENT, WAITING, Notifications
from harmonia.server.services.notifications.topics import SCOPES, Scope, Subscription, checked_topic
from harmonia.server.services.secrets import Secrets

_MANAGE, _SEE = "team:manage_integrations", "team:read"


@dataclass(frozen=True, slots=True)
class IntegrationWish:
    """What an integration shall be; None: as it is, or for a new one the default.

    connection: by provider. retries: repeat a delivery until it is received.
    """

    name: str | None = None
    connection: Mapping[str, Connection] | None = None
    subscriptions: Sequence[Subscription] | None = None
    retries: bool | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class IntegrationInfo:
    """An integration, and its connection as people may see it."""

    row: Integration
    connection: Connection


@dataclass(frozen=True, slots=True)
class ScopeWish:
    """Whom a test concerns. team: by id or key."""

    users: tuple[uuid.UUID, ...] = ()
    team: str | None = None
    organization: bool = False
    admin: bool = False


class Integrations:
    """Makes and changes them. Members of a team with the permission do, and members of the team `admin` everywhere."""

    def __init__(self, database: Database, secrets: Secrets, notifications: Notifications) -> None:
        self._database, self._secrets, self._notifications = database, secrets, notifications

    async def create(self, caller: Caller, team: str, provider: str, wish: IntegrationWish) -> IntegrationInfo:
        """An integration of a team."""
        if provider not in PROVIDERS:
            raise InvalidRequestError(f"{provider!r} is none of {', '.join(PROVIDERS)}", field="provider")
        connection = checked_connection(provider, wish.connection or {}, None)
        async with self._database.begin() as session:
            row_of_team = await _team(session, caller, team, _MANAGE)
            row = Integration(
                team_id=row_of_team.id,
                name=checked_name(wish.name or ""),
                provider=provider,
                sealed=self._secrets.seal(json.dumps(connection)),
                subscriptions=_checked(provider, row_of_team, wish.subscriptions or ()),
                retries=wish.retries is not False,
                enabled=wish.enabled is not False,
            )
            session.add(row)
            record(session, caller, "integration.create", f"integration/{row.name}", team=row_of_team.key)
            await session.flush()
        return IntegrationInfo(row, shown_connection(provider, connection, is_new=True))

    async def update(self, caller: Caller, integration: uuid.UUID, wish: IntegrationWish) -> IntegrationInfo:
        """Change one. What an answer hides stays as it is where it is sent back."""
        async with self._database.begin() as session:
            row, team = await _named(session, caller, integration, _MANAGE)
            if wish.name is not None:
                row.name = checked_name(wish.name)
            if wish.connection is not None:
                connection = checked_connection(row.provider, wish.connection, self._opened(row))
                row.sealed = self._secrets.seal(json.dumps(connection))
            if wish.subscriptions is not None:
                row.subscriptions = _checked(row.provider, team, wish.subscriptions)
            row.retries = row.retries if wish.retries is None else wish.retries
            row.enabled = row.enabled if wish.enabled is None else wish.enabled
            record(session, caller, "integration.update", f"integration/{row.name}", team=team.key)
            await session.flush()
        return self._info(row)

    async def delete(self, caller: Caller, integration: uuid.UUID) -> None:
        """Forget one, and what was on its way there."""
        async with self._database.begin() as session:
            row, team = await _named(session, caller, integration, _MANAGE)
            await session.delete(row)
            record(session, caller, "integration.delete", f"integration/{row.name}", team=team.key)

    async def all(self, caller: Caller, team: str) -> list[IntegrationInfo]:
        """Those of a team, oldest first."""
        async with self._database.read() as session:
            row_of_team = await _team(session, caller, team, _SEE)
            query = select(Integration).where(Integration.team_id == row_of_team.id)
            rows = (await session.execute(query.order_by(Integration.created_at, Integration.name))).scalars()
            return [self._info(row) for row in rows]

    async def find(self, caller: Caller, integration: uuid.UUID) -> IntegrationInfo | None:
        """One of them; None if there is none that the caller may see."""
        async with self._database.read() as session:
            try:
                row, _ = await _named(session, caller, integration, _SEE)
            except (EntityNotFoundError, PermissionDeniedError):
                return None
            return self._info(row)

    async def test(
        self, caller: Caller, topic: str, wish: ScopeWish, payload: Mapping[str, Any]
    ) -> tuple[uuid.UUID, int]:
        """Publish an event as a test: its id, and to how many integrations it goes."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, _MANAGE)
            if wish.users or wish.organization or wish.admin:
                await require_admin(session, caller, _MANAGE)
            teams = () if wish.team is None else ((await _team(session, caller, wish.team, _MANAGE)).id,)
            scope = Scope(wish.users, teams, organization=wish.organization, admin=wish.admin)
            return await self._notifications.publish(topic, scope, payload, session)

    async def status(self, caller: Caller) -> tuple[int, int]:
        """How many messages are on their way, and how many were given up in the last days."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, _MANAGE)
            query = select(Delivery.state, func.count()).where(Delivery.state != SENT).group_by(Delivery.state)
            counts = dict((await session.execute(query)).all())
        return counts.get(WAITING, 0), counts.get(FAILED, 0)

    def _opened(self, row: Integration) -> Connection:
        connection: Connection = json.loads(self._secrets.open(row.sealed))
        return connection

    def _info(self, row: Integration) -> IntegrationInfo:
        return IntegrationInfo(row, shown_connection(row.provider, self._opened(row)))


def _checked(provider: str, team: Team, subscriptions: Sequence[Subscription]) -> list[dict[str, Any]]:
    allowed = PROVIDERS[provider][2]
    for item in subscriptions:
        checked_topic(item.topic_pattern, "topicPattern", is_pattern=True)
        if item.scope not in allowed:
            there = f"one of {', '.join(allowed)}" if allowed else "no subscriptions at all"
            raise InvalidRequestError(f"scope: {provider} takes {there}, got {item.scope}", field="scope")
        if item.scope == SCOPES[-1] and team.key != ADMIN_TEAM:
            raise InvalidRequestError(
                f"scope: only integrations of the team {ADMIN_TEAM!r} are told what concerns it; make one there",
                field="scope",
            )
        if item.target_filter is not None and not isinstance(item.target_filter, dict):
            raise InvalidRequestError(f"targetFilter: an object, got {item.target_filter!r}", field="targetFilter")
    return [asdict(item) for item in subscriptions]


async def _team(session: AsyncSession, caller: Caller, text: str, permission: str) -> Team:
    """A team in which the caller has a permission."""
    team = (await session.execute(select(Team).where(by_id_or_key(Team.id, Team.key, text)))).scalar_one_or_none()
    if team is None:
        raise EntityNotFoundError(f"Team {text!r} does not exist", entity="team")
    granted = await team_permissions(session, caller, team.key) | await team_permissions(session, caller, ADMIN_TEAM)
    if permission not in granted:
        raise PermissionDeniedError(
            f"{caller.email} lacks the permission {permission!r} in the team {team.key!r}; ask an admin for it"
        )
    return team


async def _named(
    session: AsyncSession, caller: Caller, integration: uuid.UUID, permission: str
) -> tuple[Integration, Team]:
    row = await session.get(Integration, integration)
    if row is None:
        raise EntityNotFoundError(f"Integration '{integration}' does not exist", entity="integration")
    return row, await _team(session, caller, str(row.team_id), permission)
