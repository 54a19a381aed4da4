"""What becomes of requests whose worker is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from harmonia.protocol.fleet import WorkerState
from harmonia.protocol.messages import Embed, Failed, Generate
from tests.unit.server.conftest import Serve, Served
from tests.unit.server.scripted import Script, ScriptedWorker

LOST = Failed(id="", code="worker_lost", message="gone")
FULL = Failed(id="", code="overloaded", message="the queue is full")


@asynccontextmanager
async def two_workers(serve: Serve, folder: Path) -> AsyncIterator[tuple[Served, ScriptedWorker]]:
    """A server with two workers, of which the first is asked first."""
    async with serve() as served, ScriptedWorker(folder / "second.sock").serving() as second:
        served.fleet.set("r2", WorkerState.READY, second.path)
        async with asyncio.timeout(5):
            while (await served.http.get("/health")).status_code != 200:
                await asyncio.sleep(0.005)
        yield served, second


async def test_another_worker_answers_when_nothing_was_sent_yet(serve: Serve, tmp_path: Path) -> None:
    async with two_workers(serve, tmp_path) as (served, second):
        served.worker.script = Script(failure=LOST, fail_after=1)
        whole = await served.chat()
        assert whole.json()["choices"][0]["message"]["content"] == "Paris is nice"
        served.worker.script = Script(failure=LOST)
        streamed = await served.chat(stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert len(served.worker.of(Generate)) == len(second.of(Generate)) == 2


async def test_the_error_is_told_when_no_worker_is_left(serve: Serve, tmp_path: Path) -> None:
    async with two_workers(serve, tmp_path) as (served, second):
        served.worker.script = second.script = Script(failure=LOST)
        answer = await served.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_lost")
        assert len(served.worker.of(Generate)) == len(second.of(Generate)) == 1


async def test_a_stream_that_has_begun_is_not_sent_again(serve: Serve, tmp_path: Path) -> None:
    async with two_workers(serve, tmp_path) as (served, second):
        served.worker.script = Script(failure=LOST, fail_after=1)
        streamed = await served.chat(stream=True)
        assert "Paris" in streamed.text
        assert "worker_lost" in streamed.text
        assert second.of(Generate) == []


async def test_a_full_queue_sends_a_request_and_its_session_to_another_worker(serve: Serve, tmp_path: Path) -> None:
    async with two_workers(serve, tmp_path) as (served, second):
        served.worker.script = Script(failure=FULL)
        for stream in (False, True):
            assert (await served.chat(session_id="talk", stream=stream)).status_code == 200
        assert (len(served.worker.of(Generate)), len(second.of(Generate))) == (1, 2), "the session stays where it went"
        second.script = Script(failure=FULL)
        refused = await served.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1


async def test_embeddings_are_computed_by_another_worker(serve: Serve, tmp_path: Path) -> None:
    async with two_workers(serve, tmp_path) as (served, second):
        served.worker.script = Script(failure=LOST)
        body = {"model": "tiny", "input": "hello"}
        answer = await served.http.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        assert len(served.worker.of(Embed)) == len(second.of(Embed)) == 1
        second.script = Script(failure=LOST)
        assert (await served.http.post("/v1/embeddings", json=body)).json()["error"]["code"] == "worker_lost"
