"""Data sets made of interactions: which completions, what of them, and their rows in the form that people upload."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, and_, exists, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.datasets import Dataset
from harmonia.server.db.interactions import Completion
from harmonia.server.db.metrics import Comparison, DirectScore, Metric
from harmonia.server.services.access import Caller, ProjectAccess, require_in_project
from harmonia.server.services.datasets.datasets import Datasets, NewDataset
from harmonia.server.services.datasets.rows import PREFERENCE, PROMPT, SCORE
from harmonia.server.services.datasets.transcript import preference_row, row_of
from harmonia.server.services.interactions.filters import LabelIs, Where, condition
from harmonia.server.services.interactions.selection import READ, Selection, Selections, selected
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.metrics import IS_THERE, SYSTEM, metric_named

ALL, RANDOM, LAST = "ALL", "RANDOM", "LAST"
MAX_ROWS = 200_000
"""Of one such data set, since whoever asks waits for it."""
_BATCH = 500
"""Comparisons that are read at a time."""
_SHOWN = 10
"""Rows of a preview."""
_CREATE = "dataset:create"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsWish:
    """What the rows are made of.

    metrics: by id or key, whose scores or comparisons count; None: all. score_labels: only scores of completions with
    these labels count. sample: ALL rows, `size` of them at RANDOM, or the LAST `size`.
    """

    selection: Selection
    kind: str
    metrics: Sequence[str] | None = None
    score_labels: Sequence[LabelIs] = ()
    sample: str = ALL
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """How many rows there will be, and the first of them."""

    records: int
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The completions or, of preferences, the comparisons that become rows, oldest first."""

    wish: RowsWish
    ids: list[uuid.UUID]
    metrics: frozenset[uuid.UUID] | None
    scored: ColumnElement[bool]
    """Which completions' scores count."""


class FilteredDatasets:
    """Makes them."""

    def __init__(
        self, database: Database, writer: InteractionWriter, selections: Selections, datasets: Datasets
    ) -> None:
        self._database = database
        self._writer = writer
        self._selections = selections
        self._datasets = datasets

    async def create(self, caller: Caller, new: NewDataset, wish: RowsWish) -> Dataset:
        """A data set, ready on return. `InvalidRequestError`: nothing is selected, or a completion cannot be a row."""
        chosen = await self._chosen(caller, new.project, wish, (READ, _CREATE))
        if not chosen.ids:
            raise InvalidRequestError(
                "nothing that is selected makes a row of this kind; widen the filters", field="completionQuery"
            )
        return await self._datasets.create(caller, new, self._lines(chosen))

    async def preview(self, caller: Caller, project: str, wish: RowsWish) -> Preview:
        """What `create` would make."""
        chosen = await self._chosen(caller, project, wish, (READ,))
        first = _Chosen(wish, chosen.ids[:_SHOWN], chosen.metrics, chosen.scored)
        return Preview(len(chosen.ids), [row async for rows in self._rows(first) for row in rows])

    async def download(self, caller: Caller, project: str, selection: Selection) -> AsyncIterator[bytes]:
        """The completions that are selected as such rows, with their scores."""
        ids = await self._selections.ids(caller, project, selection)
        return self._lines(_Chosen(RowsWish(selection=selection, kind=SCORE), ids, None, true()))

    # --------------------------------------------------------------------------------------------- which

    async def _chosen(self, caller: Caller, project: str, wish: RowsWish, permissions: Sequence[str]) -> _Chosen:
        _check_sample(wish)
        await self._writer.settled()
        async with self._database.read() as session:
            for permission in permissions:
                access = await require_in_project(session, caller, project, permission)
            metrics = None
            if wish.metrics is not None:
                found = [(await metric_named(session, access.project_id, name)).id for name in wish.metrics]
                metrics = frozenset(found)
            labels = Where(all_of=tuple(Where(label=label) for label in wish.score_labels))
            scored = await condition(session, access.project_id, labels)
            wanted = await selected(session, access, wish.selection)
            ids = await _ids(session, _query(wish, access, wanted, metrics, scored), wish)
        return _Chosen(wish, ids, metrics, scored)

    # --------------------------------------------------------------------------------------------- their rows

    async def _lines(self, chosen: _Chosen) -> AsyncIterator[bytes]:
        async for rows in self._rows(chosen):
            yield b"".join(msgspec.json.encode(row) + b"\n" for row in rows)

    async def _rows(self, chosen: _Chosen) -> AsyncIterator[list[dict[str, Any]]]:
        if chosen.wish.kind == PREFERENCE:
            async for rows in self._preferences(chosen.ids):
                yield rows
            return
        async for batch in self._selections.read(chosen.ids):
            counted = await self._counted(chosen, [info.row.id for info in batch])
            yield [row_of(info, chosen.wish.kind, chosen.metrics, info.row.id in counted) for info in batch]

    async def _counted(self, chosen: _Chosen, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Those whose scores count."""
        if chosen.wish.kind != SCORE:
            return set()
        async with self._database.read() as session:
            query = select(Completion.id).where(Completion.id.in_(ids), chosen.scored)
            return set((await session.execute(query)).scalars())

    async def _preferences(self, ids: Sequence[uuid.UUID]) -> AsyncIterator[list[dict[str, Any]]]:
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            async with self._database.read() as session:
                query = select(Comparison.id, Comparison.preferred_id).where(Comparison.id.in_(batch))
                preferred = {row.id: row.preferred_id for row in (await session.execute(query)).all()}
            wanted = list(dict.fromkeys(preferred.values()))
            infos = {info.row.id: info async for items in self._selections.read(wanted) for info in items}
            found = {item.row.id: item for info in infos.values() for item in info.comparisons}
            yield [preference_row(found[each]) for each in batch if each in found]


def _check_sample(wish: RowsWish) -> None:
    if wish.sample == ALL and wish.size is not None:
        raise InvalidRequestError("sampleSize belongs to RANDOM and LAST; leave it out for ALL", field="sampleSize")
    if wish.sample != ALL and (wish.size is None or wish.size < 1):
        raise InvalidRequestError(
            f"sampleSize: say how many rows, at least 1, for {wish.sample}; got {wish.size}", field="sampleSize"
        )


def _query(
    wish: RowsWish,
    access: ProjectAccess,
    wanted: ColumnElement[bool],
    metrics: frozenset[uuid.UUID] | None,
    scored: ColumnElement[bool],
) -> Select[uuid.UUID, str]:
    """The id and what must not repeat, newest first."""
    if wish.kind == PREFERENCE:
        picked = select(Completion.id).where(wanted)
        parts = [Comparison.project_id == access.project_id, Comparison.tie.is_(None)]
        parts.append(or_(Comparison.preferred_id.in_(picked), Comparison.other_id.in_(picked)))
        parts.append(Comparison.metric_id.in_(_counting(access, metrics)))
        if wish.score_labels:
            parts.append(Comparison.preferred_id.in_(select(Completion.id).where(scored)))
        compared = select(Comparison.id, Completion.prompt_hash)
        compared = compared.join(Completion, Completion.id == Comparison.preferred_id).where(*parts)
        return compared.order_by(Comparison.created_at.desc(), Comparison.id)
    if wish.kind == SCORE:
        has_score = exists().where(
            DirectScore.completion_id == Completion.id, DirectScore.metric_id.in_(_counting(access, metrics))
        )
        wanted = and_(wanted, scored, has_score)
    return (
        select(Completion.id, Completion.prompt_hash)
        .where(wanted)
        .order_by(Completion.created_at.desc(), Completion.id)
    )


def _counting(access: ProjectAccess, metrics: frozenset[uuid.UUID] | None) -> Select[uuid.UUID]:
    """The ids of the metrics that count."""
    known = select(Metric.id).where(Metric.project_id == access.project_id, IS_THERE)
    return known.where(Metric.category != SYSTEM) if metrics is None else known.where(Metric.id.in_(metrics))


async def _ids(session: AsyncSession, query: Select[uuid.UUID, str], wish: RowsWish) -> list[uuid.UUID]:
    """A prompt alone is taken once, however often it was answered."""
    rows = (await session.execute(query.limit(MAX_ROWS + 1))).all()
    if len(rows) > MAX_ROWS:
        raise InvalidRequestError(
            f"more than {MAX_ROWS} interactions are selected; narrow the filters, by time for one",
            field="completionQuery",
        )
    ids = [row[0] for row in rows]
    if wish.kind == PROMPT:
        newest = {prompt: each for each, prompt in reversed(rows)}
        ids = [each for each, prompt in rows if newest[prompt] == each]
    if wish.sample == LAST:
        ids = ids[: wish.size]
    elif wish.sample == RANDOM and wish.size is not None and wish.size < len(ids):
        places = sorted(random.sample(range(len(ids)), wish.size))
        ids = [ids[place] for place in places]
    return ids[::-1]
