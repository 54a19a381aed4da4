"""What the interactions of a project can be filtered by."""

from __future__ import annotations

from collections.abc import Sequence

import strawberry

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.models import Model
from harmonia.server.graphql.people import User
from harmonia.server.graphql.scalars import IdOrKey, Timestamp
from harmonia.server.services.interactions.surroundings import KeyUse


@strawberry.type
class LabelValueUsage:
    """How many completions have a value, and when the last of them came."""

    value: str
    count: int
    last_used: Timestamp


@strawberry.type
class LabelKeyUsage:
    """The same for a label, whatever its value; the values of most completions come first."""

    key: str
    count: int
    values: list[LabelValueUsage]
    last_used: Timestamp


@strawberry.type
class LabelUsage:
    """The labels of a project."""

    keys: list[LabelKeyUsage]

    @classmethod
    def of(cls, uses: Sequence[KeyUse]) -> LabelUsage:
        """From what was counted."""
        return cls(keys=[_key(use) for use in uses])


def _key(use: KeyUse) -> LabelKeyUsage:
    values = [
        LabelValueUsage(value=each.value, count=each.count, last_used=Timestamp(each.last_used)) for each in use.values
    ]
    return LabelKeyUsage(key=use.key, count=use.count, values=values, last_used=Timestamp(use.last_used))


@strawberry.type
class InteractionOptionsResult:
    """Who called, what was asked, and the labels."""

    users: list[User]
    models: list[Model]
    labels: LabelUsage


@strawberry.input
class InteractionOptionsInput:
    """Of which project."""

    project_id: IdOrKey


@strawberry.type
class InteractionOptionsQuery:
    """What filters can ask for."""

    @strawberry.field
    async def interaction_options(self, info: Info, filter: InteractionOptionsInput) -> InteractionOptionsResult:
        """Of the interactions of a project."""
        found = await info.context.services.surroundings.options(info.context.caller, filter.project_id)
        return InteractionOptionsResult(
            users=[User.of(row) for row in found.users],
            models=[Model.of(row) for row in found.models],
            labels=LabelUsage.of(found.labels),
        )
