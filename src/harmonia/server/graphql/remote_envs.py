"""Servers outside that score, for every project."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Annotated

import strawberry
from strawberry.scalars import JSON

from harmonia.server.db import graders as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.scalars import IdOrKey, Key, Timestamp
from harmonia.server.services.graders.graders import NewRemoteEnv
from harmonia.server.services.outbound import OutboundError


@strawberry.enum
class RemoteEnvStatus(Enum):
    """Whether it answers."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"


@strawberry.type
class RemoteEnv:
    """A server outside."""

    row: strawberry.Private[db.RemoteEnv]
    id: uuid.UUID
    key: str
    name: str
    url: str
    description: str
    created_at: Timestamp
    version: str
    metadata_schema: JSON | None

    @classmethod
    def of(cls, row: db.RemoteEnv) -> RemoteEnv:
        """From its row."""
        return cls(
            row=row,
            id=row.id,
            key=row.key,
            name=row.name,
            url=row.url,
            description=row.description,
            created_at=Timestamp(row.created_at),
            version=row.version,
            metadata_schema=None if row.metadata_schema is None else JSON(row.metadata_schema),
        )

    @strawberry.field
    async def status(self, info: Info) -> RemoteEnvStatus:
        """Whether it answers now."""
        online = await info.context.services.graders.is_online(self.row)
        return RemoteEnvStatus.ONLINE if online else RemoteEnvStatus.OFFLINE


@strawberry.type
class RemoteEnvTestOnline:
    """What a server says of itself."""

    name: str
    version: str
    description: str


@strawberry.type
class RemoteEnvTestOffline:
    """Why it says nothing."""

    error: str


RemoteEnvTest = Annotated[RemoteEnvTestOffline | RemoteEnvTestOnline, strawberry.union("RemoteEnvTest")]


@strawberry.input
class RemoteEnvCreate:
    """A server; what is left out is asked of it."""

    url: str
    key: Key | None = None
    name: str | None = None
    description: str | None = None


@strawberry.type
class RemoteEnvQuery:
    """Servers outside."""

    @strawberry.field
    async def remote_envs(self, info: Info) -> list[RemoteEnv]:
        """All of them."""
        return [RemoteEnv.of(row) for row in await info.context.services.graders.envs(info.context.caller)]


@strawberry.type
class RemoteEnvMutation:
    """Adding and removing them."""

    @strawberry.mutation
    async def add_remote_env(self, info: Info, input: RemoteEnvCreate) -> RemoteEnv:
        """A server that answers."""
        new = NewRemoteEnv(input.url, input.key, input.name, input.description)
        return RemoteEnv.of(await info.context.services.graders.add_env(info.context.caller, new))

    @strawberry.mutation
    async def remove_remote_env(self, info: Info, id_or_key: IdOrKey) -> str:
        """Forget a server; its key."""
        return await info.context.services.graders.remove_env(info.context.caller, id_or_key)

    @strawberry.mutation
    async def test_remote_env(self, info: Info, input: RemoteEnvCreate) -> RemoteEnvTest:
        """Ask a server what it is; that it does not answer is no error."""
        try:
            found = await info.context.services.graders.probe(info.context.caller, input.url)
        except OutboundError as error:
            return RemoteEnvTestOffline(error=str(error))
        return RemoteEnvTestOnline(name=found.name, version=found.version, description=found.description)
