"""The graders of a project, and the servers outside that score."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.client.grades import Grade
from harmonia.config.control import Graders as Settings
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.graders import Grader, RemoteEnv
from harmonia.server.db.metrics import Metric
from harmonia.server.db.models import Model
from harmonia.server.db.projects import Project
from harmonia.server.services.access import (
    Caller,
    by_id_or_key,
    require_anywhere,
    require_in_project,
    visible_projects,
)
from harmonia.server.services.audit import record
from harmonia.server.services.graders.configs import (
    FUNCTION,
    JUDGE,
    PREBUILT,
    REMOTE,
    Config,
    FunctionConfig,
    JudgeConfig,
    RemoteConfig,
    kept,
    model_of,
    require_config,
    sample_thread,
)
from harmonia.server.services.graders.judging import Graded, Judges, check_templates
from harmonia.server.services.graders.remote import RemoteGraders, ServerInfo
from harmonia.server.services.graders.sandbox import Sandbox, Validation
from harmonia.server.services.keys import checked_key, checked_name, key_from
from harmonia.server.services.metrics import MetricInfo, NewMetric, add_metric, metric_infos
from harmonia.server.services.models.models import named_model
from harmonia.server.services.outbound import OutboundError, checked_url
from harmonia.threads import StringThread

_WRITE, _READ = "metric:create", "metric:read"


@dataclass(frozen=True, slots=True)
class NewGrader:
    """A grader to make. key: None makes one of the name. metric: None makes a scalar one of the same key."""

    name: str
    kind: str
    config: Config
    key: str | None = None
    metric: NewMetric | None = None


@dataclass(frozen=True, slots=True)
class GraderChange:
    """What shall be different; None stays as it is. A kind comes with the settings of that kind."""

    name: str | None = None
    kind: str | None = None
    config: Config | None = None


@dataclass(frozen=True, slots=True)
class GraderInfo:
    """A grader with what it belongs to."""

    row: Grader
    project: Project
    metric: MetricInfo
    model: Model | None


@dataclass(frozen=True, slots=True)
class NewRemoteEnv:
    """A server outside. What is None is asked of the server, the key made of the name."""

    url: str
    key: str | None = None
    name: str | None = None
    description: str | None = None


class Graders:
    """Makes, finds and runs graders."""

    def __init__(self, settings: Settings, database: Database, judges: Judges) -> None:
        self._database = database
        self._judges = judges
        self._sandbox = Sandbox(settings)
        self.remote = RemoteGraders(settings)
        """Where servers outside are asked."""

    async def close(self) -> None:
        """Close connections."""
        await self.remote.close()

    # ------------------------------------------------------------------------------------------ in a project

    async def create(self, caller: Caller, project: str, new: NewGrader) -> GraderInfo:
        """A grader and its metric. A function is tried first, and a server outside asked what it is."""
        await self._require(caller, project, _WRITE)
        key = checked_key(new.key) if new.key else key_from(new.name)
        name, config = checked_name(new.name), await self._completed(new.kind, new.config)
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, _WRITE)
            taken = select(Grader.id).where(Grader.project_id == access.project_id, Grader.key == key)
            if (await session.execute(taken)).first() is not None:
                raise InvalidRequestError(
                    f"the key {key!r} is taken by another grader here; choose another", field="key"
                )
            model = model_of(config)
            row = Grader(
                project_id=access.project_id,
                metric_id=await _metric(session, access.project_id, key, new.metric),
                model_id=None if model is None else (await named_model(session, model)).id,
                key=key,
                name=name,
                kind=new.kind,
                config=kept(config),
            )
            session.add(row)
            record(session, caller, "grader.create", f"grader/{key}", project=access.project_key, kind=new.kind)
            await session.flush()
            return await _info(session, row)

    async def update(self, caller: Caller, project: str, grader: str, change: GraderChange) -> GraderInfo:
        """Change a grader that is not locked."""
        await self._require(caller, project, _WRITE)
        kind, config = change.kind, change.config
        if config is None and kind is not None:
            raise InvalidRequestError("a new graderType comes with its graderConfig; give both", field="graderConfig")
        if config is not None and kind is None:
            kind = (await self.get(caller, project, grader)).row.kind
        if config is not None and kind is not None:
            config = await self._completed(kind, config)
        async with self._database.begin() as session:
            row = await _unlocked(session, caller, project, grader)
            if change.name is not None:
                row.name = checked_name(change.name)
            if config is not None and kind is not None:
                model = model_of(config)
                row.model_id = None if model is None else (await named_model(session, model)).id
                row.kind, row.config = kind, kept(config)
            row.updated_at = now_ms()
            record(session, caller, "grader.update", f"grader/{row.key}")
            await session.flush()
            return await _info(session, row)

    async def delete(self, caller: Caller, project: str, grader: str) -> Grader:
        """Forget a grader that is not locked; its metric and the scores stay."""
        async with self._database.begin() as session:
            row = await _unlocked(session, caller, project, grader)
            await session.delete(row)
            record(session, caller, "grader.delete", f"grader/{row.key}")
            return row

    async def lock(self, caller: Caller, project: str, grader: str, *, locked: bool) -> GraderInfo:
        """Keep a grader from changes, or let it be changed again."""
        async with self._database.begin() as session:
            row = await _named(session, caller, project, grader, _WRITE)
            row.locked, row.updated_at = locked, now_ms()
            record(session, caller, "grader.lock" if locked else "grader.unlock", f"grader/{row.key}")
            await session.flush()
            return await _info(session, row)

    async def all(self, caller: Caller, project: str) -> list[GraderInfo]:
        """The graders of a project, oldest first."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, _READ)
            query = _infos().where(Grader.project_id == access.project_id)
            return await _found(session, query.order_by(Grader.created_at, Grader.key))

    async def get(self, caller: Caller, project: str, grader: str) -> GraderInfo:
        """One of them by id or key; EntityNotFoundError if there is none."""
        async with self._database.read() as session:
            return await _info(session, await _named(session, caller, project, grader, _READ))

    async def of_metric(self, caller: Caller, project_id: uuid.UUID, metric_id: uuid.UUID) -> GraderInfo | None:
        """What writes a metric's scores, if a grader does and the caller may see it."""
        async with self._database.read() as session:
            visible = Grader.project_id.in_(visible_projects(caller, _READ))
            query = _infos().where(Grader.project_id == project_id, Grader.metric_id == metric_id, visible)
            return next(iter(await _found(session, query.order_by(Grader.created_at))), None)

    async def validate(self, caller: Caller, project: str, code: str, sample: object) -> Validation:
        """Look at a function, and try it on a sample in JSON; None: one of our own."""
        await self._require(caller, project, _WRITE)
        return await self._sandbox.validate(code, sample_thread(sample))

    # ------------------------------------------------------------------------------------------ grading

    async def grade(self, grader: Grader, thread: StringThread) -> Grade:
        """The grade of one conversation. IgnoreGradeException if the grader leaves it out; HarmoniaError on failure."""
        (graded,) = await self.grade_all(grader, [thread])
        if not isinstance(graded, Grade):
            raise graded
        return graded

    async def grade_all(self, grader: Grader, threads: Sequence[StringThread]) -> list[Graded]:
        """The grades of many, in order, or why there is none. InvalidRequestError for what only a recipe can run."""
        if grader.kind == FUNCTION:
            outcomes = await self._sandbox.grade(grader.key, grader.config["source_code"], threads)
            return [_graded(grader.key, item.score, item.error, item.ignored) for item in outcomes]
        if grader.kind == REMOTE:
            return await self.remote.score(grader.key, grader.config["url"], threads)
        if grader.kind in (JUDGE, PREBUILT):
            return await self._judges.grade(grader, await self._judge(grader), threads)
        raise InvalidRequestError(
            f"grader {grader.key!r} is of type {grader.kind}, which only a recipe can run; run one with this grader",
            field="grader",
        )

    # ------------------------------------------------------------------------------------------ servers outside

    async def probe(self, caller: Caller, url: str) -> ServerInfo:
        """What a server says of itself; OutboundError if it does not."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, _WRITE)
        return await self.remote.info(checked_url(url))

    async def add_env(self, caller: Caller, new: NewRemoteEnv) -> RemoteEnv:
        """A server that every project may use."""
        url = checked_url(new.url)
        try:
            info = await self.probe(caller, url)
        except OutboundError as error:
            raise InvalidRequestError(f"url: {error}; see whether its server is up", field="url") from error
        schema = await self.remote.metadata_schema(url)
        async with self._database.begin() as session:
            await require_anywhere(session, caller, _WRITE)
            name = checked_name(new.name or info.name)
            key = checked_key(new.key) if new.key else key_from(name)
            if (await session.execute(select(RemoteEnv.id).where(RemoteEnv.key == key))).first() is not None:
                raise InvalidRequestError(f"the key {key!r} is taken; choose another", field="key")
            description = new.description or info.description
            row = RemoteEnv(
                key=key, name=name, url=url, description=description, version=info.version, metadata_schema=schema
            )
            session.add(row)
            record(session, caller, "remote_env.create", f"remote_env/{key}", url=url)
            await session.flush()
            return row

    async def remove_env(self, caller: Caller, env: str) -> str:
        """Forget a server; its key."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, _WRITE)
            query = select(RemoteEnv).where(by_id_or_key(RemoteEnv.id, RemoteEnv.key, env))
            row = (await session.execute(query)).scalar_one_or_none()
            if row is None:
                raise EntityNotFoundError(f"Remote environment {env!r} does not exist", entity="remote environment")
            await session.delete(row)
            record(session, caller, "remote_env.delete", f"remote_env/{row.key}")
            return row.key

    async def envs(self, caller: Caller) -> list[RemoteEnv]:
        """All of them, oldest first."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, _READ)
            return list((await session.execute(select(RemoteEnv).order_by(RemoteEnv.created_at))).scalars())

    async def is_online(self, env: RemoteEnv) -> bool:
        """Whether a server answers now."""
        try:
            await self.remote.info(env.url)
        except OutboundError:
            return False
        return True

    # ------------------------------------------------------------------------------------------ checks

    async def _judge(self, grader: Grader) -> Model:
        async with self._database.read() as session:
            model = await session.get(Model, grader.model_id)
        assert model is not None  # models that judge cannot be deleted
        return model

    async def _require(self, caller: Caller, project: str, permission: str) -> None:
        """Before anything is run or asked on behalf of the caller."""
        async with self._database.read() as session:
            await require_in_project(session, caller, project, permission)

    async def _completed(self, kind: str, config: Config) -> Config:
        """Checked, and with what only the outside knows."""
        require_config(kind, config)
        if isinstance(config, JudgeConfig):
            check_templates(config)
        if isinstance(config, FunctionConfig):
            found = await self._sandbox.validate(config.source_code, sample_thread(None))
            wrong = next((check for check in found.checks if not check.passed and check.name not in _BY_SAMPLE), None)
            if wrong is not None:
                raise InvalidRequestError(f"sourceCode: {wrong.name}: {wrong.message}", field="sourceCode")
        if isinstance(config, RemoteConfig):
            url = checked_url(config.url)
            try:
                info = await self.remote.info(url)
            except OutboundError as error:
                raise InvalidRequestError(f"url: {error}; see whether its server is up", field="url") from error
            return replace(config, url=url, version=info.version, description=info.description)
        return config


_BY_SAMPLE = ("run", "result")
"""Checks that may fail on our sample though the function is right, as when it wants metadata."""


def _graded(name: str, score: float | None, error: str | None, ignored: bool) -> Graded:
    if score is not None:
        return Grade(score, name)
    if ignored:
        return IgnoreGradeException(error or "")
    return InvalidRequestError(
        f"grader {name!r} failed: {error}; mend its function, or let it raise IgnoreGradeException there",
        field="source_code",
    )


def _infos() -> Select[Grader, Project, Model]:
    return (
        select(Grader, Project, Model)
        .join(Project, Project.id == Grader.project_id)
        .outerjoin(Model, Model.id == Grader.model_id)
    )


async def _found(session: AsyncSession, query: Select[Grader, Project, Model]) -> list[GraderInfo]:
    rows = (await session.execute(query)).all()
    metrics = await metric_infos(session, Metric.id.in_([grader.metric_id for grader, _, _ in rows]))
    by_id = {item.row.id: item for item in metrics}
    return [GraderInfo(grader, project, by_id[grader.metric_id], model) for grader, project, model in rows]


async def _info(session: AsyncSession, row: Grader) -> GraderInfo:
    return (await _found(session, _infos().where(Grader.id == row.id)))[0]


async def _named(session: AsyncSession, caller: Caller, project: str, grader: str, permission: str) -> Grader:
    access = await require_in_project(session, caller, project, permission)
    query = select(Grader).where(Grader.project_id == access.project_id, by_id_or_key(Grader.id, Grader.key, grader))
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        raise EntityNotFoundError(f"Grader {grader!r} does not exist", entity="grader")
    return row


async def _unlocked(session: AsyncSession, caller: Caller, project: str, grader: str) -> Grader:
    row = await _named(session, caller, project, grader, _WRITE)
    if row.locked:
        raise InvalidRequestError(f"grader {row.key!r} is locked; unlock it first", field="id")
    return row


async def _metric(session: AsyncSession, project_id: uuid.UUID, key: str, wish: NewMetric | None) -> uuid.UUID:
    """The metric that the grader will write: a new one, or one that a grader of this key left behind."""
    new: dict[str, Any] = {"name": key, "kind": "SCALAR", "key": key, "category": "GRADER"}
    if wish is not None:
        new.update(name=wish.name, kind=wish.kind, key=wish.key or key_from(wish.name))
        new.update(scoring_type=wish.scoring_type, description=wish.description, unit=wish.unit)
    query = (
        select(Metric.id)
        .outerjoin(Grader, Grader.metric_id == Metric.id)
        .where(
            Metric.project_id == project_id,
            Metric.key == new["key"],
            Metric.category == "GRADER",
            Metric.kind == new["kind"],
            Grader.id.is_(None),
        )
    )
    left = (await session.execute(query)).scalar_one_or_none()
    return left if left is not None else (await add_metric(session, project_id, NewMetric(**new))).id
