"""Deployments become worker processes: what the database wants is compared with what runs, until both agree."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from harmonia.config import CacheConfig, EngineConfig, WorkerConfig
from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError, UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.log import get_logger
from harmonia.protocol.fleet import Fleet
from harmonia.protocol.instances import MAX_DRAFT_STEPS, NGRAM
from harmonia.router import Router
from harmonia.server.db.database import Database
from harmonia.server.db.models import ComputePool, Model
from harmonia.server.services.models.allotments import Allotments, CountedFleet
from harmonia.server.services.models.backbone import OFFLINE, PENDING, Backbone, Observed, Wanted, together
from harmonia.server.services.models.devices import Device
from harmonia.server.services.models.models import EXTERNAL
from harmonia.server.services.models.roots import Root, find_roots, wanted_rows
from harmonia.server.services.notifications.announcements import TOLD, announce_model
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)

_LOOK_AGAIN_S = 30.0
_RETRY_S = 1.0


class Serving:
    """Keeps every model online that some project wants online, and notes in the database how each fares."""

    def __init__(
        self,
        config: ControlConfig,
        database: Database,
        notifications: Notifications,
        allotments: Allotments,
        fleet: Fleet | None = None,
    ) -> None:
        """fleet: None takes the processes of this machine."""
        self._config = config
        self._database = database
        self._notifications = notifications
        self._allotments = allotments
        local = fleet or LocalFleet(max_silence_s=config.http_client.max_silence_secs)
        self._fleet = CountedFleet(local, allotments)
        self.router = Router(self._fleet, config.http_client.timeout_secs)
        self._backbones: dict[tuple[str, str], Backbone] = {}
        """By base model or draft, and pool."""
        self._roots: dict[str, str] = {}
        """Under whose key the worker answers that is for a model."""
        self._retried: set[str] = set()
        """Models to try again in the next round."""
        self._waiting: dict[str, str] = {}
        """Why a base model has no device yet."""
        self._stranded: dict[str, str] = {}
        """Why a base model will have none."""
        self._news = asyncio.Event()
        self._noted = asyncio.Condition()
        self._rounds = 0
        self._in_round = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve what was served before."""
        await self.router.start()
        await self._wanted()  # so that models have their devices before waiting jobs look for some
        self._allotments.listen(self._news.set)
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
        """Something in the database is different. retry: key of a model that shall be tried again if it failed."""
        if retry is not None:
            self._retried.add(retry)
        self._news.set()

    def root_of(self, model: str) -> str | None:
        """The base model or draft beside which a model of that key runs, or which it is; None: it shall not run."""
        return self._roots.get(model)

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
        found = {key: [Observed("PENDING", why)] for key, why in self._waiting.items()}
        found |= {key: [Observed("ERROR", why)] for key, why in self._stranded.items()}
        for backbone in self._backbones.values():
            for key, observed in backbone.observed().items():
                found.setdefault(key, []).append(observed)
        return {key: together(several) for key, several in found.items()}

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            self._news.clear()
            self._in_round = True
            try:
                retried, self._retried = self._retried, set()
                self._command(await self._wanted(), retried)
                await self._note()
            except (SQLAlchemyError, OSError, HarmoniaError) as error:
                log.error("deployments cannot be brought up to date (%s); again in %g s", error, _RETRY_S)
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:
                log.exception("deployments cannot be brought up to date; again in %g s", _LOOK_AGAIN_S)
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            # Together: between them whoever asks would wait for the end of this round, which had begun before.
            self._in_round, self._rounds = False, self._rounds + 1
            async with self._noted:
                self._noted.notify_all()
            with suppress(TimeoutError):
                # Not `wait_for`, which forgets that it was cancelled if there are news at that moment.
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._news.wait()

    async def _wanted(self) -> dict[tuple[str, str], Wanted]:
        """By base model or draft, and pool."""
        async with self._database.read() as session:
            rows = (await session.execute(wanted_rows())).all()
            sizes = (await session.execute(select(ComputePool.key, ComputePool.num_inference))).all()
        for pool, size in sizes:
            self._allotments.set_serving(pool, size)
        roots = find_roots(rows)
        self._roots = {key: root.model.key for root in roots.values() for key in (root.model.key, *root.adapters)}
        places = self._places({key: root.pools for key, root in roots.items()})
        return {
            (key, pool): Wanted(self._worker(roots[key], device), roots[key].adapters)
            for (key, pool), device in places.items()
        }

    def _places(self, named: dict[str, set[str]]) -> dict[tuple[str, str], Device]:
        """Where each base model goes, by model and pool; named: the pools that were chosen for it, none for any."""
        self._waiting.clear()
        self._stranded.clear()
        known = self._allotments.pools.keys()
        places: dict[tuple[str, str], Device] = {}
        for key, pools in named.items():
            if pools and pools.isdisjoint(known):
                gone = ", ".join(sorted(pools))
                self._stranded[key] = f"its compute pools ({gone}) are gone; place it in one of {', '.join(known)}"
            for pool in self._allotments.pools_for(key, pools):
                device = self._allotments.place(key, pool)
                if device is None:
                    self._waiting[key] = f"waits for a device of compute pool {pool!r}: jobs hold all that serve"
                else:
                    places[key, pool] = device
        self._allotments.keep(places)
        return places

    def _worker(self, root: Root, device: Device) -> WorkerConfig:
        compute = root.compute
        return WorkerConfig(
            model=root.target.source,
            key=root.model.key,
            registry=str(self._config.registry),
            engine=EngineConfig(
                max_seq_len=compute.get("max_seq_len"),
                draft=root.draft,
                # Each request says how many its project wants, so that another number needs no other worker.
                num_draft_steps=None if root.draft is None else MAX_DRAFT_STEPS,
                cache=CacheConfig(kv_cache_len=compute.get("kv_cache_len")),
            ),
            max_ttft_ms=self._config.max_ttft_ms,
            place=device.place,
        )

    def _command(self, wanted: dict[tuple[str, str], Wanted], retried: Collection[str]) -> None:
        """retried: models for which what failed is tried again."""
        again = {self._roots.get(key) for key in retried}
        for place in [place for place, backbone in self._backbones.items() if backbone.done]:
            del self._backbones[place]
            again.update(self._roots.values())  # what had no room may have it now
        for (key, pool), backbone in self._backbones.items():
            if (key, pool) in wanted or not self._is_moving(key, wanted):
                backbone.want(self._until_moved(backbone, wanted.get((key, pool)), wanted))
            if key in again:
                backbone.retry()
        for place in wanted.keys() - self._backbones.keys():
            self._backbones[place] = Backbone(self._fleet, self.router, wanted[place], self._news.set)

    def _until_moved(
        self, backbone: Backbone, own: Wanted | None, wanted: dict[tuple[str, str], Wanted]
    ) -> Wanted | None:
        """What a backbone shall run while adapters leave it for another: they stay until they answer there.

        Where the other fails they stay, too, but for a draft that nobody wants any longer: it makes room.
        """
        if backbone.wanted is None:
            return own
        left = own.adapters if own is not None else {}
        makes_room = own is None and backbone.wanted.config.engine.draft not in (None, NGRAM)
        reasons = (PENDING.online,) if makes_room else (PENDING.online, "ERROR")
        leaving = {
            key: folder
            for key, folder in backbone.wanted.adapters.items()
            if key not in left and self._fares(key, wanted) in reasons
        }
        return replace(backbone.wanted, adapters={**left, **leaving}) if leaving else own

    def _fares(self, adapter: str, wanted: dict[tuple[str, str], Wanted]) -> str:
        """How an adapter is where it shall be."""
        places = [place for place, item in wanted.items() if adapter in item.adapters]
        if not places:
            return PENDING.online if self._roots.get(adapter) in self._waiting else OFFLINE.online
        there = [self._backbones[place].observed() for place in places if place in self._backbones]
        return together([observed.get(adapter, PENDING) for observed in there] or [PENDING]).online

    def _is_moving(self, model: str, wanted: dict[tuple[str, str], Wanted]) -> bool:
        """Whether a model is to run elsewhere and does not yet: until then it stays where it is."""
        places = [place for place in wanted if place[0] == model]
        is_there = any(place in self._backbones and self._backbones[place].is_online for place in places)
        return model in self._waiting or (bool(places) and not is_there)

    async def _note(self) -> None:
        """Write what is observed where it is not what is written."""
        async with self._database.begin() as session:
            query = select(Model).where(Model.kind != EXTERNAL, Model.deleted_at.is_(None))
            rows = (await session.execute(query)).scalars().all()
            observed = self.kept()
            for row in rows:
                now = observed.get(row.key, OFFLINE)
                if (row.online, row.error) != (now.online, now.error):
                    log.info("model %s: %s%s", row.key, now.online, f" ({now.error})" if now.error else "")
                    is_news = row.online != now.online and now.online in TOLD
                    row.online, row.error = now.online, now.error
                    self._news.set()  # where an adapter runs depends on how drafts fare
                    if is_news:
                        await announce_model(session, self._notifications, row)
