"""Where one worker fits and no second: adapters go between a draft and its target without getting lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from harmonia.config import WorkerConfig
from harmonia.config.control import ControlConfig
from harmonia.protocol.fleet import WorkerFailure, WorkerState
from harmonia.server.db.database import Database
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.models.allotments import Allotments
from harmonia.server.services.models.compute import Compute
from harmonia.server.services.models.devices import find_pools
from harmonia.server.services.models.serving import Serving
from harmonia.server.services.notifications.notifications import Notifications
from harmonia.server.services.secrets import Secrets
from tests.unit.server.scripted import ScriptedWorker, StillFleet


@dataclass
class OneRoom(StillFleet):
    """It has room for one worker."""

    folder: Path = Path()
    stacks: dict[str, AsyncExitStack] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    async def start(self, config: WorkerConfig) -> str:
        replica = f"r{len(self.started)}"
        self.started.append(config.key)
        if self.stacks:
            failure = WorkerFailure(code="insufficient_memory", message="no room")
            self.set(replica, WorkerState.FAILED, key=config.key)
            self.workers[replica] = msgspec.structs.replace(self.workers[replica], failure=failure)
            return replica
        worker, self.stacks[replica] = ScriptedWorker(self.folder / replica, config.key), AsyncExitStack()
        await self.stacks[replica].enter_async_context(worker.serving())
        self.set(replica, WorkerState.READY, worker.path, config.key)
        return replica

    async def stop(self, replica: str) -> None:
        if replica in self.stacks:
            self.set(replica, WorkerState.STOPPED)
            await self.stacks.pop(replica).aclose()
        await super().stop(replica)

    async def close(self) -> None:
        for replica in list(self.stacks):
            await self.stop(replica)


@pytest.fixture
async def fleet(tmp_path: Path) -> OneRoom:
    return OneRoom(folder=tmp_path)


@pytest.fixture
async def serving(database: Database, tmp_path: Path, fleet: OneRoom) -> AsyncIterator[Serving]:
    config = ControlConfig(data_dir=tmp_path, db={"url": "sqlite://"})
    allotments = Allotments(find_pools(config.compute))
    notifications = Notifications(config.notifications, database, Secrets(config))
    serving = Serving(config, database, notifications, allotments, fleet)
    await Compute(database, serving, allotments).start()
    await serving.start()
    yield serving
    await serving.close()


@pytest.fixture
async def project(database: Database) -> Project:
    """With a model, a draft of it and an adapter of it in the registry."""
    async with database.begin() as session:
        project = Project(key="tickets", name="Tickets")
        base = Model(key="tiny", name="tiny", kind="base", source="/tiny", family="llama", size=1)
        session.add_all((project, base))
        await session.flush()
        for key, kind in (("fast", "draft"), ("polite", "adapter")):
            session.add(Model(key=key, name=key, kind=kind, source=f"/{key}", backbone_id=base.id, size=1))
    return project


async def want(serving: Serving, database: Database, project: Project, key: str, *, online: bool = True) -> None:
    async with database.begin() as session:
        model = (await session.execute(select(Model).where(Model.key == key))).scalar_one()
        query = select(ModelService).where(ModelService.model_id == model.id)
        service = (await session.execute(query)).scalar_one_or_none() or ModelService(
            project_id=project.id, model_id=model.id, key=key, name=key, num_draft_steps=2
        )
        service.desired_online = online
        session.add(service)
    serving.wake()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.005)


async def test_an_adapter_gets_the_room_of_the_draft_beside_which_it_was(
    serving: Serving, database: Database, project: Project, fleet: OneRoom
) -> None:
    await want(serving, database, project, "fast")
    await want(serving, database, project, "polite")
    await until(lambda: serving.router.serves("polite"))
    assert serving.root_of("polite") == "fast" and fleet.started == ["fast"]
    await want(serving, database, project, "fast", online=False)
    await until(lambda: [status.key for status in fleet.statuses()] == ["tiny"])
    await until(lambda: serving.router.serves("polite"))
    await until(lambda: serving.kept()["polite"].online == "ONLINE")
    assert serving.kept()["polite"].error is None


async def test_a_draft_without_room_leaves_it_where_it_is(
    serving: Serving, database: Database, project: Project, fleet: OneRoom
) -> None:
    await want(serving, database, project, "polite")
    await until(lambda: serving.router.serves("polite"))
    await want(serving, database, project, "fast")
    await until(lambda: serving.kept().get("fast") is not None and serving.kept()["fast"].online == "ERROR")
    await until(lambda: serving.root_of("polite") == "tiny" and not serving._in_round)
    assert serving.kept()["polite"].online == "ONLINE" and serving.router.serves("polite")
    assert fleet.started == ["tiny", "fast"]
