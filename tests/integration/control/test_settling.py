"""Waiting until a model is deployed: what a round that had begun before says does not count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harmonia.config import WorkerConfig
from harmonia.config.control import ControlConfig
from harmonia.protocol.fleet import WorkerState
from harmonia.server.db.database import Database
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.models.allotments import Allotments
from harmonia.server.services.models.compute import Compute
from harmonia.server.services.models.devices import find_pools
from harmonia.server.services.models.serving import Serving
from harmonia.server.services.notifications.notifications import Notifications
from harmonia.server.services.secrets import Secrets
from tests.unit.server.scripted import StillFleet


class LoadingFleet(StillFleet):
    """Workers that never come to an end of loading."""

    async def start(self, config: WorkerConfig) -> str:
        self.set("r1", WorkerState.LOADING, key=config.key)
        return "r1"


@pytest.fixture
async def serving(database: Database, tmp_path: Path) -> AsyncIterator[Serving]:
    config = ControlConfig(data_dir=tmp_path, db={"url": "sqlite://"})
    allotments = Allotments(find_pools(config.compute))
    notifications = Notifications(config.notifications, database, Secrets(config))
    serving = Serving(config, database, notifications, allotments, LoadingFleet())
    await Compute(database, serving, allotments).start()
    await serving.start()
    yield serving
    await serving.close()


async def test_a_round_that_had_begun_before_does_not_settle_a_model(serving: Serving, database: Database) -> None:
    model = Model(key="tiny", name="tiny", kind="base", source="/nowhere", family="llama", size=1)
    async with database.begin() as session:
        project = Project(key="tickets", name="Tickets")
        session.add_all((project, model))
    rounds = serving._rounds
    async with serving._noted:  # as whoever waits for another model does now and then
        serving.wake()
        async with asyncio.timeout(20):
            while serving._in_round or serving._rounds == rounds:
                await asyncio.sleep(0.01)
        async with database.begin() as session:
            service = ModelService(project_id=project.id, model_id=model.id, key="tiny", name="tiny")
            service.desired_online = True
            session.add(service)
        settled = asyncio.create_task(serving.settled(model.id))
        await asyncio.sleep(0.05)
    done, _ = await asyncio.wait([settled], timeout=1)
    assert not done, "the model is loading"
    assert serving.kept()["tiny"].online == "PENDING"
    settled.cancel()


@pytest.mark.parametrize("ticks", range(5))
async def test_it_ends_though_something_happens_at_that_moment(serving: Serving, ticks: int) -> None:
    async with asyncio.timeout(20):
        while serving._in_round or not serving._rounds:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    serving.wake()
    for _ in range(ticks):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await serving.close()
