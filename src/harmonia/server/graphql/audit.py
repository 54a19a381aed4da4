"""Who changed what."""

from __future__ import annotations

import uuid

import strawberry
from strawberry.scalars import JSON

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.paging import CursorPageInput, PageInfo
from harmonia.server.graphql.people import User
from harmonia.server.graphql.scalars import IdOrKey, InputDatetime, Timestamp
from harmonia.server.services.audit import AuditPage, AuditWish
from harmonia.server.services.moments import moment_ms


@strawberry.type
class AuditEntry:
    """One change."""

    id: uuid.UUID
    created_at: Timestamp
    action: str = strawberry.field(description="Such as `team.create`.")
    entity: str = strawberry.field(description="Kind and key of what was changed, such as `team/support`.")
    details: JSON
    user: User | None = strawberry.field(description="Who did it; null: the system itself.")


@strawberry.type
class AuditEdge:
    """An entry and its place."""

    node: AuditEntry
    cursor: str


@strawberry.type
class AuditConnection:
    """A page of entries."""

    page_info: PageInfo
    edges: list[AuditEdge]
    nodes: list[AuditEntry]
    total_count: int

    @classmethod
    def of(cls, page: AuditPage) -> AuditConnection:
        """From what was read."""
        nodes = [
            AuditEntry(
                id=row.id,
                created_at=Timestamp(row.created_at),
                action=row.action,
                entity=row.entity,
                details=JSON(row.details),
                user=None if user is None else User.of(user),
            )
            for row, user in page.entries
        ]
        edges = [AuditEdge(node=node, cursor=at) for node, at in zip(nodes, page.page.cursors, strict=True)]
        return cls(page_info=PageInfo.of(page.page), edges=edges, nodes=nodes, total_count=page.total)


@strawberry.input
class AuditFilter:
    """Which entries are wanted."""

    action: str | None = strawberry.field(default=None, description="Such as `team.create`, or `team.*`.")
    entity: str | None = strawberry.field(default=None, description="Such as `team/support`, or `team/*`.")
    user: IdOrKey | None = None
    from_: InputDatetime | None = strawberry.field(name="from", default=None, description="Inclusive.")
    to: InputDatetime | None = strawberry.field(default=None, description="Exclusive.")

    @property
    def wish(self) -> AuditWish:
        """For the service."""
        since = None if self.from_ is None else moment_ms(self.from_, "from")
        until = None if self.to is None else moment_ms(self.to, "to")
        return AuditWish(self.action, self.entity, self.user, since, until)


@strawberry.type
class AuditQuery:
    """The audit log."""

    @strawberry.field
    async def audit_log(
        self, info: Info, page: CursorPageInput | None = None, filter: AuditFilter | None = None
    ) -> AuditConnection:
        """Newest first, for admins."""
        wish, wanted = (filter or AuditFilter()).wish, (page or CursorPageInput()).wish
        return AuditConnection.of(await info.context.services.audit.read(info.context.caller, wish, wanted))
