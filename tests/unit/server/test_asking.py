"""Questions of the server's own."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from harmonia.errors import WorkerLostError
from harmonia.protocol.fleet import WorkerState
from harmonia.protocol.messages import Failed, Generate
from harmonia.router import Router
from harmonia.server.db.models import Model
from harmonia.server.services.models.asking import Asking
from harmonia.server.services.models.external import ExternalModels
from harmonia.threads import StringThread
from tests.unit.server.scripted import Script, ScriptedWorker, StillFleet

LOST = Failed(id="", code="worker_lost", message="gone")
FULL = Failed(id="", code="overloaded", message="the queue is full")


async def test_another_worker_is_asked_where_one_does_not_answer(tmp_path: Path) -> None:
    fleet = StillFleet()
    router = Router(fleet)
    model, thread = Model(key="tiny", kind="base"), StringThread([("user", "hi")])
    async with ScriptedWorker(tmp_path / "1").serving() as first, ScriptedWorker(tmp_path / "2").serving() as second:
        for worker in (first, second):
            fleet.set(worker.path.name, WorkerState.READY, worker.path)
        await router.start()
        async with asyncio.timeout(20):
            while not router.ready:
                await asyncio.sleep(0.005)
        asking = Asking(router, cast(ExternalModels, None), timeout_s=20)
        for failure in (LOST, FULL):
            first.script = Script(failure=failure)
            assert await asking.answer(model, thread, max_tokens=8) == "Paris is nice"
        assert len(first.of(Generate)) == len(second.of(Generate)) == 2
        second.script = Script(failure=LOST)
        with pytest.raises(WorkerLostError, match="gone"):
            await asking.answer(model, thread, max_tokens=8)
        await router.close()
