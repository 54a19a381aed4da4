"""Keys that users call with."""

from __future__ import annotations

import uuid

import strawberry

from harmonia.server.db import people as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.scalars import IdOrKey, InputDatetime, Timestamp
from harmonia.server.services.moments import moment_ms


@strawberry.type
class ApiKey:
    """A new key, shown this once."""

    key: str
    created_at: Timestamp


@strawberry.type
class ApiKeyInfo:
    """What is kept of a key."""

    id: uuid.UUID
    hint: str = strawberry.field(description="Its first letters.")
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None

    @classmethod
    def of(cls, row: db.ApiKey) -> ApiKeyInfo:
        """From its row."""
        return cls(
            id=row.id,
            hint=row.hint,
            created_at=Timestamp(row.created_at),
            expires_at=None if row.expires_at is None else Timestamp(row.expires_at),
            revoked_at=None if row.revoked_at is None else Timestamp(row.revoked_at),
        )


@strawberry.input
class ApiKeyCreate:
    """Whose key to make, and when the earlier ones of that user stop to work; without it they go on."""

    user: IdOrKey
    expiration_for_previous_keys: InputDatetime | None = None


@strawberry.type
class ApiKeyQuery:
    """Keys."""

    @strawberry.field
    async def api_keys(self, info: Info) -> list[ApiKeyInfo]:
        """The caller's own, newest first."""
        return [ApiKeyInfo.of(row) for row in await info.context.services.api_keys.all(info.context.caller)]


@strawberry.type
class ApiKeyMutation:
    """Making and ending keys."""

    @strawberry.mutation
    async def create_api_key(self, info: Info, input: ApiKeyCreate) -> ApiKey:
        """A further key of the caller, or, for admins, of a service account."""
        end = input.expiration_for_previous_keys
        end_ms = None if end is None else moment_ms(end, "expirationForPreviousKeys")
        row, text = await info.context.services.api_keys.create(info.context.caller, input.user, end_ms)
        return ApiKey(key=text, created_at=Timestamp(row.created_at))

    @strawberry.mutation
    async def revoke_api_key(self, info: Info, id: uuid.UUID) -> ApiKeyInfo:
        """The key is refused from the next call on."""
        return ApiKeyInfo.of(await info.context.services.api_keys.revoke(info.context.caller, id))
