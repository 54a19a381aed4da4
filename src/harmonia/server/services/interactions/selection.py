"""Completions that somebody picked: changed, deleted and downloaded as one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, CursorResult, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.services.access import Caller, ProjectAccess, require_in_project
from harmonia.server.services.audit import record
from harmonia.server.services.interactions.details import CompletionInfo, details
from harmonia.server.services.interactions.filters import Where, condition
from harmonia.server.services.interactions.interaction import checked_labels
from harmonia.server.services.interactions.writer import InteractionWriter

READ, CHANGE = "interaction:read", "project:update"
_BATCH = 500
"""Completions that are read at a time."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Completions of a project. project: as the filter names it, if there is one; it must be the same."""

    where: Where
    project: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionChange:
    """What shall be different about a completion; None stays as it is. set_labels replaces all labels."""

    remove_labels: Sequence[tuple[str, str]] = ()
    add_labels: Mapping[str, str] | None = None
    set_labels: Mapping[str, str] | None = None
    metadata: dict[str, Any] | None = None


async def selected(session: AsyncSession, access: ProjectAccess, selection: Selection) -> ColumnElement[bool]:
    """The condition of a selection; a filter of another project is refused."""
    if selection.project is not None and selection.project not in (access.project_key, str(access.project_id)):
        raise InvalidRequestError(
            f"filters.project is {selection.project!r:.80}, and the selection is of {access.project_key!r}; give one",
            field="project",
        )
    return await condition(session, access.project_id, selection.where)


class Selections:
    """What can be done with completions that were picked."""

    def __init__(self, database: Database, writer: InteractionWriter) -> None:
        self._database = database
        self._writer = writer

    async def update(self, caller: Caller, completion_id: uuid.UUID, change: CompletionChange) -> CompletionInfo:
        """Change the labels and the metadata of a completion; needs `project:update` in its project."""
        await self._writer.settled([completion_id])
        async with self._database.begin() as session:
            row, access = await _own(session, caller, completion_id)
            await _label(session, row.id, change)
            if change.metadata is not None:
                row.user_metadata = change.metadata
            record(session, caller, "completion.update", f"completion/{row.id}", project=access.project_key)
            await session.flush()
            return (await details(session, [row]))[0]

    async def delete(self, caller: Caller, completion_id: uuid.UUID) -> None:
        """Forget a completion, its scores and its comparisons; needs `project:update` in its project."""
        await self._writer.settled([completion_id])
        async with self._database.begin() as session:
            row, access = await _own(session, caller, completion_id)
            await session.delete(row)
            record(session, caller, "completion.delete", f"completion/{row.id}", project=access.project_key)

    async def delete_all(self, caller: Caller, project: str, selection: Selection) -> int:
        """The same for all that are selected; how many they were."""
        await self._writer.settled()
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, CHANGE)
            wanted = await selected(session, access, selection)
            result = await session.execute(
                delete(Completion).where(wanted).execution_options(synchronize_session=False)
            )
            assert isinstance(result, CursorResult)
            record(
                session,
                caller,
                "completion.delete",
                f"project/{access.project_key}",
                project=access.project_key,
                count=result.rowcount,
            )
            return result.rowcount

    async def check(self, caller: Caller, project: str, selection: Selection) -> ProjectAccess:
        """That a selection can be read; what it selects is not looked at."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, READ)
            await selected(session, access, selection)
            return access

    async def lines(self, caller: Caller, project: str, selection: Selection) -> AsyncIterator[bytes]:
        """All that is known of each completion, one JSON object a line, oldest first."""
        return self._lines(await self.ids(caller, project, selection))

    async def ids(self, caller: Caller, project: str, selection: Selection) -> list[uuid.UUID]:
        """What is selected, oldest first; needs `interaction:read`."""
        await self._writer.settled()
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, READ)
            query = select(Completion.id).where(await selected(session, access, selection))
            return list((await session.execute(query.order_by(Completion.created_at, Completion.id))).scalars())

    async def _lines(self, ids: Sequence[uuid.UUID]) -> AsyncIterator[bytes]:
        async for batch in self.read(ids):
            yield b"".join(msgspec.json.encode(_shown(item)) + b"\n" for item in batch)

    async def read(self, ids: Sequence[uuid.UUID]) -> AsyncIterator[list[CompletionInfo]]:
        """Completions in this order, some at a time; those that were deleted meanwhile are left out."""
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            async with self._database.read() as session:
                query = select(Completion).where(Completion.id.in_(batch))
                rows = {row.id: row for row in (await session.execute(query)).scalars()}
                yield await details(session, [rows[each] for each in batch if each in rows])


async def _own(session: AsyncSession, caller: Caller, completion_id: uuid.UUID) -> tuple[Completion, ProjectAccess]:
    row = await session.get(Completion, completion_id)
    if row is None:
        raise EntityNotFoundError(f"Completion {completion_id} does not exist", entity="completion")
    return row, await require_in_project(session, caller, str(row.project_id), CHANGE)


async def _label(session: AsyncSession, completion_id: uuid.UUID, change: CompletionChange) -> None:
    """A label has one value, so adding one replaces the value that it had."""
    own = CompletionLabel.completion_id == completion_id
    added = {**(change.set_labels or {}), **(change.add_labels or {})}
    checked_labels(added)
    gone = [(CompletionLabel.key == key) & (CompletionLabel.value == value) for key, value in change.remove_labels]
    if change.set_labels is not None:
        await session.execute(delete(CompletionLabel).where(own))
    for wanted in [*gone, CompletionLabel.key.in_(added)]:
        await session.execute(delete(CompletionLabel).where(own, wanted))
    if added:
        rows = [{"completion_id": completion_id, "key": key, "value": value} for key, value in added.items()]
        await session.execute(insert(CompletionLabel), rows)


def _shown(info: CompletionInfo) -> dict[str, Any]:
    row = info.row
    return {
        "id": row.id,
        "created_at": row.created_at,
        "source": row.source,
        "model": row.model_key,
        "session_id": row.session_id,
        "user": row.user,
        "messages": row.messages,
        "completion": row.completion,
        "labels": {label.key: label.value for label in info.labels},
        "scores": [
            {"metric": item.metric.row.key, "value": item.row.value, "reason": item.row.reason}
            | {"details": item.row.details, "source": item.row.source, "created_at": item.row.created_at}
            for item in info.scores
        ],
        "comparisons": [
            {"metric": item.metric.row.key, "preferred": item.preferred.row.id, "other": item.other.row.id}
            | {"tie": item.row.tie, "created_at": item.row.created_at}
            for item in info.comparisons
        ],
        "parameters": row.parameters,
        "timings": row.timings,
        "usage": row.usage,
        "metadata": row.user_metadata,
    }
