"""Deployments become worker processes: what the database wants is compared with what runs, until both agree."""

from __future__ import annotations

import asyncio
import uuid

from sqlalchemy import Select, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from harmonia.config import CacheConfig, EngineConfig, WorkerConfig
from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError, UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.log import get_logger
from harmonia.protocol.fleet import Fleet
from harmonia.router import Router
from harmonia.server.db.database import Database
from harmonia.server.db.models import ComputePool, Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.models.backbone import OFFLINE, Backbone, Observed, Wanted
from harmonia.server.services.models.devices import find_devices
from harmonia.server.services.models.models import ADAPTER, BASE, EXTERNAL
from harmonia.server.services.notifications.announcements import TOLD, announce_model
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)

POOL = "default"
_LOOK_AGAIN_S = 30.0
_RETRY_S = 1.0


class Serving:
    """Keeps every model online that some project wants online, and notes in the database how each fares."""

    def __init__(
        self, config: ControlConfig, database: Database, notifications: Notifications, fleet: Fleet | None = None
    ) -> None:
        """fleet: None takes the processes of this machine."""
        self._config = config
        self._database = database
        self._notifications = notifications
        self._fleet = fleet or LocalFleet()
        self.router = Router(self._fleet, config.http_client.timeout_secs)
        self._backbones: dict[str, Backbone] = {}
        self._news = asyncio.Event()
        self._noted = asyncio.Condition()
        self._rounds = 0
        self._in_round = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve what was served before."""
        await self._make_pool()
        await self.router.start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End every worker. What is wanted stays wanted, and is served again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(backbone.close() for backbone in self._backbones.values()))
        self.router.abort(UnavailableError("the server is shutting down; send the request again elsewhere"))
        await self.router.close()
        await self._fleet.close()

    def wake(self, *, retry: str | None = None) -> None:
        """Something in the database is different. retry: key of a base model that shall be tried again if it failed."""
        if retry is not None and retry in self._backbones:
            self._backbones[retry].retry()
        self._news.set()

    async def settled(self, model_id: uuid.UUID) -> Model:
        """The model once it is neither starting nor about to; then it is online, or its error says why not."""
        # A round that runs already may have begun before the change that the caller made.
        round_wanted = self._rounds + (2 if self._in_round else 1)
        self._news.set()
        async with self._noted:
            while True:
                await self._noted.wait_for(lambda: self._rounds >= round_wanted)
                async with self._database.read() as session:
                    model = await session.get(Model, model_id)
                if model is None:
                    raise UnavailableError("the model was deleted meanwhile")
                if model.online != "PENDING":
                    return model
                await self._noted.wait()

    def kept(self) -> dict[str, Observed]:
        """How every model fares that shall run here."""
        return {key: found for backbone in self._backbones.values() for key, found in backbone.observed().items()}

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            self._news.clear()
            self._in_round = True
            try:
                self._command(await self._wanted())
                await self._note()
            except (SQLAlchemyError, OSError, HarmoniaError) as error:
                log.error("deployments cannot be brought up to date (%s); again in %g s", error, _RETRY_S)
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:
                log.exception("deployments cannot be brought up to date; again in %g s", _LOOK_AGAIN_S)
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            self._in_round = False
            async with self._noted:
                self._rounds += 1
                self._noted.notify_all()
            try:
                await asyncio.wait_for(self._news.wait(), _LOOK_AGAIN_S)
            except TimeoutError:
                continue

    async def _wanted(self) -> dict[str, Wanted]:
        """By key of the base model."""
        base = aliased(Model)
        query = (
            select(Model, base)
            .join(base, or_(base.id == Model.backbone_id, base.id == Model.id))
            .where(base.kind == BASE, Model.kind.in_((BASE, ADAPTER)), Model.id.in_(_desired()))
            .order_by(Model.created_at, Model.key)
        )
        async with self._database.read() as session:
            rows = (await session.execute(query)).all()
            pool = (await session.execute(select(ComputePool).where(ComputePool.key == POOL))).scalar_one()
        if pool.num_inference == 0:
            return {}
        bases: dict[str, Model] = {}
        adapters: dict[str, dict[str, str]] = {}
        for model, root in rows:
            bases[root.key] = root
            beside = adapters.setdefault(root.key, {})
            if model.kind == ADAPTER:
                beside[model.key] = str(model.source)
        return {key: Wanted(self._worker(root), adapters[key]) for key, root in bases.items()}

    def _worker(self, model: Model) -> WorkerConfig:
        compute = model.compute
        return WorkerConfig(
            model=model.source,
            key=model.key,
            registry=str(self._config.registry),
            engine=EngineConfig(
                max_seq_len=compute.get("max_seq_len"), cache=CacheConfig(kv_cache_len=compute.get("kv_cache_len"))
            ),
            max_ttft_ms=self._config.max_ttft_ms,
        )

    def _command(self, wanted: dict[str, Wanted]) -> None:
        for key in [key for key, backbone in self._backbones.items() if backbone.done]:
            del self._backbones[key]
        for key, backbone in self._backbones.items():
            backbone.want(wanted.get(key))
        for key in wanted.keys() - self._backbones.keys():
            self._backbones[key] = Backbone(self._fleet, self.router, wanted[key], self._news.set)

    async def _note(self) -> None:
        """Write what is observed where it is not what is written."""
        async with self._database.begin() as session:
            rows = (await session.execute(select(Model).where(Model.kind != EXTERNAL))).scalars().all()
            observed = self.kept()
            for row in rows:
                now = observed.get(row.key, OFFLINE)
                if (row.online, row.error) != (now.online, now.error):
                    log.info("model %s: %s%s", row.key, now.online, f" ({now.error})" if now.error else "")
                    is_news = row.online != now.online and now.online in TOLD
                    row.online, row.error = now.online, now.error
                    if is_news:
                        await announce_model(session, self._notifications, row)

    async def _make_pool(self) -> None:
        """The pool of this machine, as many devices as it has now."""
        devices = find_devices()
        async with self._database.begin() as session:
            pool = (await session.execute(select(ComputePool).where(ComputePool.key == POOL))).scalar_one_or_none()
            if pool is None:
                pool = ComputePool(key=POOL, name="Default", capabilities=["INFERENCE", "JOB"])
                pool.num_inference = devices.count
                session.add(pool)
            pool.num_devices, pool.device_types = devices.count, devices.types
            pool.num_inference = min(pool.num_inference, devices.count)


def _desired() -> Select[uuid.UUID]:
    """Ids of the models that some project wants online."""
    return (
        select(ModelService.model_id)
        .join(Project, Project.id == ModelService.project_id)
        .where(ModelService.desired_online, ModelService.deleted_at.is_(None), Project.archived_at.is_(None))
    )
