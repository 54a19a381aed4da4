"""Data sets of a job against what its graders outside want to know of every record, before the job begins."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import or_, select

from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.graders import Grader
from harmonia.server.services.access import Caller, by_id_or_key, require_in_project
from harmonia.server.services.datasets.datasets import RECIPE, Datasets
from harmonia.server.services.graders.configs import REMOTE
from harmonia.server.services.graders.json_schema import SchemaChecker
from harmonia.server.services.graders.remote import RemoteGraders


class _Metadata(msgspec.Struct):
    external_data: Any = None


class _Record(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_DECODER = msgspec.json.Decoder(_Record)


class RecordCheck:
    """Asks each server for its schema and reads each data set once."""

    def __init__(self, database: Database, datasets: Datasets, remote: RemoteGraders) -> None:
        self._database = database
        self._datasets = datasets
        self._remote = remote

    async def check(self, caller: Caller, project: str, graders: Collection[str], datasets: Mapping[str, str]) -> None:
        """`InvalidRequestError` names the first record whose metadata a grader would refuse, and why.

        graders: by id or key; those that are no servers outside want nothing. datasets: keys by the arguments of the
        job that hold them.
        """
        schemas = [
            (grader.key, SchemaChecker(schema))
            for grader in await self._outside(caller, project, graders)
            if (schema := await self._remote.wanted_metadata(grader.key, grader.config["url"])) is not None
        ]
        if not schemas:
            return
        for field, dataset in datasets.items():
            await self._check(caller, project, field, dataset, schemas)

    async def _outside(self, caller: Caller, project: str, graders: Collection[str]) -> Sequence[Grader]:
        if not graders:
            return ()
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:adapt")
            named = or_(*(by_id_or_key(Grader.id, Grader.key, grader) for grader in graders))
            query = select(Grader).where(Grader.project_id == access.project_id, Grader.kind == REMOTE, named)
            return (await session.execute(query.order_by(Grader.key))).scalars().all()

    async def _check(
        self, caller: Caller, project: str, field: str, dataset: str, schemas: Sequence[tuple[str, SchemaChecker]]
    ) -> None:
        download = await self._datasets.download(caller, project, dataset, RECIPE)
        number, rest = 0, b""
        async for block in download.blocks:
            *lines, rest = (rest + block).split(b"\n")
            wrong = await asyncio.to_thread(_first_wrong, lines, schemas)
            if wrong is not None:
                raise _refused(field, dataset, number + wrong[0], wrong[1])
            number += len(lines)


def _first_wrong(lines: Sequence[bytes], schemas: Sequence[tuple[str, SchemaChecker]]) -> tuple[int, str] | None:
    """The place of the first record that a grader would refuse, counted from 1, and why."""
    for number, line in enumerate(lines, 1):
        metadata = _DECODER.decode(line).metadata.external_data
        for grader, schema in schemas:
            try:
                problem = schema.problem({} if metadata is None else metadata)
            except InvalidRequestError as error:
                raise InvalidRequestError(
                    f"grader {grader!r}: what its server tells at /metadata_schema cannot be used: {error.message}",
                    field="grader",
                ) from error
            if problem is not None:
                return number, f"grader {grader!r} refuses its metadata: {problem}"
    return None


def _refused(field: str, dataset: str, number: int, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field}: row {number} of data set {dataset!r}: {why}; mend the data set, or leave the grader out",
        field=f"args.{field}",
    )
