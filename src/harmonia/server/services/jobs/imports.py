"""Models of the Hugging Face hub: an import is a job without a project, and a process of its own works on it.

What was accepted is in the database, so that a restart goes on where it was. Files come into a hidden folder of the
registry and move to their place when they are whole and of a model that can be run.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
from sqlalchemy import and_, or_, select, update

from harmonia.config.control import ControlConfig
from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.fleet.files import inspect_model
from harmonia.fleet.orders import PART, News, Order
from harmonia.log import get_logger
from harmonia.protocol.instances import SCHEME
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import ACTIVE, Job, JobArtifact, JobStage
from harmonia.server.db.models import ComputePool, Model, ModelImport
from harmonia.server.services import processes
from harmonia.server.services.access import Caller, by_id_or_key, require_anywhere
from harmonia.server.services.audit import record
from harmonia.server.services.jobs.claims import claim, still_runs, until_noted
from harmonia.server.services.jobs.files import JobFiles
from harmonia.server.services.keys import checked_key, checked_name, key_from
from harmonia.server.services.models.models import Models, NewModel, registry_entry, require_free_key
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.notifications.notifications import Notifications
from harmonia.server.services.secrets import Secrets

log = get_logger(__name__)

MODULE = "harmonia.fleet.hub"
STAGE = "download (bytes)"
"""Its samples are bytes."""
INCOMING = ".incoming"
"""The folder of the registry for what is not whole yet."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*(/[\w-][\w.-]*\.gguf)?)?", re.ASCII)
"""Names of models there."""
_TOKEN = re.compile(r"[\x21-\x7e]*")
_TICK_S = 1.0
_KEPT_DAYS = 7
"""How long half of a model is kept whose import failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImport:
    """A model of the hub that is wanted.

    hub_id: `OWNER/NAME`, or `OWNER/NAME/FILE` for one GGUF file of several. key: None makes one of the name. token:
    what the hub wants to see; empty for what anybody may read. compute_pool: must exist, but no device is needed.
    """

    hub_id: str
    name: str
    key: str | None = None
    token: str = field(default="", repr=False)
    compute_pool: str | None = None


class HubImports:
    """Brings models, a few at a time."""

    def __init__(
        self, config: ControlConfig, database: Database, models: Models, secrets: Secrets, notifications: Notifications
    ) -> None:
        self._config = config
        self._database = database
        self._models = models
        self._secrets = secrets
        self._notifications = notifications
        self._files = JobFiles(config)
        self._slots = asyncio.Semaphore(config.hub.imports)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Go on with what an earlier server accepted."""
        query = (
            select(ModelImport)
            .join(Job, Job.id == ModelImport.job_id)
            .where(Job.status.in_(ACTIVE))
            .order_by(Job.created_at)
        )
        async with self._database.read() as session:
            items = list((await session.execute(query)).scalars())
        await asyncio.to_thread(self._sweep, {registry_entry(self._incoming, item.key) for item in items})
        for item in items:
            self._begin(item)

    async def close(self) -> None:
        """Stop; what is on its way goes on after the next start."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(self, caller: Caller, new: NewImport) -> uuid.UUID:
        """The id of a job that brings a model. What cannot become one is refused at once: its id, key and name.

        What is found out later ends the job: no such model, no access, no room on the disk, a family that does not run.
        """
        name, key = checked_name(new.name, "outputModelName"), _key(new)
        if not HUB_ID.fullmatch(new.hub_id):
            raise InvalidRequestError(
                f"{new.hub_id[:80]!r} is no model of the hub; give OWNER/NAME, or OWNER/NAME/FILE.gguf", field="modelId"
            )
        if not _TOKEN.fullmatch(new.token):
            raise InvalidRequestError("hfToken: a token has letters, digits and signs, no spaces", field="hfToken")
        sealed = await asyncio.to_thread(self._secrets.seal, new.token) if new.token else None
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "model:create")
            await require_free_key(session, key)
            busy = select(Job.id).join(ModelImport, ModelImport.job_id == Job.id)
            busy = busy.where(ModelImport.key == key, Job.status.in_(ACTIVE))
            found = (await session.execute(busy)).first()
            if found is not None:
                raise InvalidRequestError(
                    f"job {found[0]} imports a model as {key!r} already; choose another key", field="outputModelKey"
                )
            if registry_entry(self._config.registry, key).exists():
                raise InvalidRequestError(
                    f"the registry holds files under the key {key!r}; choose another key, or add them with "
                    f"{SCHEME}{key}",
                    field="outputModelKey",
                )
            if new.compute_pool is not None:
                pool = select(ComputePool.id).where(by_id_or_key(ComputePool.id, ComputePool.key, new.compute_pool))
                if (await session.execute(pool)).first() is None:
                    message = f"Compute pool {new.compute_pool!r} does not exist"
                    raise EntityNotFoundError(message, entity="compute pool")
            job = _job(caller, new.hub_id, name, key)
            session.add(job)
            await session.flush()
            item = ModelImport(job_id=job.id, hub_id=new.hub_id, key=key, name=name, token=sealed)
            session.add_all((item, JobStage(job_id=job.id, name=STAGE, place=0)))
            record(session, caller, "model.import", f"model/{key}", hub_id=new.hub_id, job=str(job.id))
        self._begin(item)
        return job.id

    async def ensure(self, caller: Caller, new: NewImport) -> uuid.UUID:
        """The id of the job that brings, or has brought, this model under this key; a new one if there is none."""
        query = (
            select(Job.id)
            .join(ModelImport, ModelImport.job_id == Job.id)
            .outerjoin(Model, and_(Model.job_id == Job.id, Model.deleted_at.is_(None)))
            .where(ModelImport.key == _key(new), ModelImport.hub_id == new.hub_id)
            .where(or_(Job.status.in_(ACTIVE), Model.key == ModelImport.key))
        )
        async with self._database.read() as session:
            job_id = (await session.execute(query)).scalars().first()
        return await self.create(caller, new) if job_id is None else job_id

    # ----------------------------------------------------------------------------------------------- in the background

    @property
    def _incoming(self) -> Path:
        return self._config.registry / INCOMING

    def _begin(self, item: ModelImport) -> None:
        task = asyncio.create_task(self._work(item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, item: ModelImport) -> None:
        """One import from its start to its end, whatever happens."""
        async with self._slots:
            error: str | None = None
            try:
                if await claim(self._database, item.job_id, ACTIVE):  # an earlier server may have had it
                    await self._bring(item)
            except HarmoniaError as failure:
                error = failure.message
            except OSError as failure:
                error = f"{failure.strerror or failure}: {failure.filename or self._incoming}"
            except Exception:
                log.exception("the import of %s failed", item.hub_id)
                error = "the server met an error of its own while it imported the model; its log has the trace"
            await until_noted(f"the import of {item.hub_id}", partial(self._settle, item, error))

    async def _bring(self, item: ModelImport) -> None:
        folder = registry_entry(self._incoming, item.key)
        target = registry_entry(self._config.registry, item.key)
        if not target.exists():  # else it had come that far when an earlier server ended
            await self._download(item, folder)
            if not await still_runs(self._database, item.job_id):
                return
            await inspect_model(str(folder), self._config.registry)
            await asyncio.to_thread(folder.rename, target)
        new = NewModel(path=str(target), name=item.name, key=item.key, job_id=item.job_id)
        try:
            await self._models.register(None, new)
        except HarmoniaError:
            await asyncio.to_thread(target.rename, folder)
            raise

    async def _download(self, item: ModelImport, folder: Path) -> None:
        """Run the process that does it, as long as the job is wanted. UnavailableError if it fails, with its words."""
        home = self._files.folder(item.job_id)
        await asyncio.to_thread(_make_folders, home, folder)
        token = None if item.token is None else self._secrets.open(item.token)
        hub = self._config.hub
        order = Order(
            hub_id=item.hub_id,
            folder=str(folder),
            endpoint=hub.address,
            token=token,
            spare_bytes=hub.spare_disk_bytes,
        )
        own = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        variables = processes.environment(home, self._config.folder / "cache", own)
        process = await processes.start(MODULE, folder=home, variables=variables, reads=True)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
        telling = _Telling(self._files.log(item.job_id), token)
        reading = asyncio.create_task(telling.read(process.stdout))
        try:
            while not reading.done():
                await asyncio.wait((reading,), timeout=_TICK_S)
                if not await self._note(item, folder, telling.total_bytes):
                    return
            await reading
        finally:
            await processes.stop(process, 0.0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        telling.check()

    async def _note(self, item: ModelImport, folder: Path, total: int | None) -> bool:
        """Write how far it is; false when it is not wanted any longer."""
        if total is not None:
            done = min(total, await asyncio.to_thread(_num_bytes, folder))
            stage = update(JobStage).where(JobStage.job_id == item.job_id)
            async with self._database.begin() as session:
                await session.execute(stage.values(total=total, processed=done))
                await session.execute(stage.where(JobStage.started_at.is_(None)).values(started_at=now_ms()))
        return await still_runs(self._database, item.job_id)

    async def _settle(self, item: ModelImport, error: str | None) -> None:
        """Note the end, forget the token, and clear away what was canceled."""
        async with self._database.begin() as session:
            job = await session.get_one(Job, item.job_id, with_for_update=True)
            if job.status == "RUNNING":
                job.status, job.ended_at, job.error = "COMPLETED" if error is None else "FAILED", now_ms(), error
                if error is None:
                    stage = update(JobStage).where(JobStage.job_id == job.id)
                    await session.execute(stage.values(ended_at=job.ended_at))
                    session.add(_artifact(item))
                await announce_job(session, self._notifications, job)
            await session.execute(update(ModelImport).where(ModelImport.id == item.id).values(token=None))
            is_canceled = job.status == "CANCELED"
        log.info("import of %s as %s: %s%s", item.hub_id, item.key, job.status, f" ({error})" if error else "")
        if is_canceled:
            folder = registry_entry(self._incoming, item.key)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _sweep(self, wanted: set[Path]) -> None:
        """Remove what nobody has gone on with for long."""
        if self._incoming.is_dir():
            for folder in self._incoming.iterdir():
                if folder not in wanted and folder.stat().st_mtime < time.time() - _KEPT_DAYS * 86_400:
                    shutil.rmtree(folder, ignore_errors=True)


class _Telling:
    """What the process says: news are kept, all else goes to the log."""

    def __init__(self, path: Path, token: str | None) -> None:
        self._path = path
        self._token = token
        self._last = News()
        self.total_bytes: int | None = None

    async def read(self, source: asyncio.StreamReader) -> None:
        """Until the process ends."""
        with self._path.open("a", encoding="utf-8") as file:
            while line := (await source.readline()).decode(errors="replace"):
                try:
                    self._last = msgspec.json.decode(line, type=News)
                    self.total_bytes = self._last.total_bytes or self.total_bytes
                except msgspec.MsgspecError:
                    file.write(line if self._token is None else line.replace(self._token, "(token)"))
                    file.flush()

    def check(self) -> None:
        """Raise unless everything came."""
        if self._last.error is not None:
            raise UnavailableError(self._last.error)
        if not self._last.is_done:
            raise UnavailableError("the download ended without a word; the job's log has what it wrote")


def _key(new: NewImport) -> str:
    return checked_key(new.key, "outputModelKey") if new.key else key_from(new.name, "outputModelName")


def _job(caller: Caller, hub_id: str, name: str, key: str) -> Job:
    return Job(
        name=f"Import {hub_id}"[:255],
        recipe_key="",
        entrypoint="",
        args={"model_id": hub_id, "output_model_name": name, "output_model_key": key},
        num_gpus=0,
        created_by=caller.user_id,
    )


def _artifact(item: ModelImport) -> JobArtifact:
    return JobArtifact(job_id=item.job_id, name=item.key, kind="MODEL", details={"model_key": item.key})


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def _num_bytes(folder: Path) -> int:
    """Of what came so far; files are renamed meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        for place in (path, path.with_name(path.name.removesuffix(PART))):
            try:
                total += place.stat().st_size if place.is_file() else 0
            except FileNotFoundError:
                continue
            break
    return total
