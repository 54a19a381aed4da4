"""Interactions on their way into the database: nothing is lost, nobody waits without need, and failures are told."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.glance import Rows
from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.db.projects import Project
from harmonia.server.services.interactions.interaction import Interaction, checked_labels, prompt_hash
from harmonia.server.services.interactions.writer import InteractionWriter
from tests.integration.control.conftest import on_both


async def make_project(database: Database) -> uuid.UUID:
    async with database.begin() as session:
        row = Project(key="lab", name="Lab", settings={})
        session.add(row)
        await session.flush()
        return row.id


def interaction(project_id: uuid.UUID, text: str = "answer", **more: Any) -> Interaction:
    return Interaction(project_id=project_id, messages=[{"role": "user", "content": "ask"}], completion=text, **more)


async def count(database: Database, table: type = Completion) -> int:
    async with database.read() as session:
        return int((await session.execute(select(func.count()).select_from(table))).scalar_one())


def fail(monkeypatch: pytest.MonkeyPatch, database: Database, times: int) -> None:
    """The next transactions fail as those of a database that is away."""
    insert, left = database.insert, iter(range(times))

    async def failing(rows: Rows) -> None:
        if next(left, None) is not None:
            raise OperationalError("INSERT", {}, Exception("the disk is full"))
        await insert(rows)

    monkeypatch.setattr(database, "insert", failing)


@on_both
async def test_nobody_waits_for_the_database_and_nothing_is_lost_at_the_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id = await make_project(database)
    insert, may_write = database.insert, asyncio.Event()

    async def slow(rows: Rows) -> None:
        await may_write.wait()
        await insert(rows)

    monkeypatch.setattr(database, "insert", slow)
    writer = InteractionWriter(database)
    writer.start()
    for number in range(1200):
        item = interaction(project_id, f"{number}\0", labels={"n": str(number)}, usage={"total_tokens": number})
        assert await writer.record(item) == item.id
    assert "harmonia_interactions_pending 1200.0" in generate_latest(database.usage.registry).decode()
    may_write.set()
    await writer.close()
    assert (await count(database), await count(database, CompletionLabel), writer.written) == (1200, 1200, 1200)


async def test_what_was_just_recorded_is_there_for_who_asks(database: Database) -> None:
    project_id = await make_project(database)
    writer = InteractionWriter(database)
    writer.start()
    for _ in range(3):
        item = await writer.record(interaction(project_id))
        await writer.settled([item])
        async with database.read() as session:
            assert await session.get(Completion, item) is not None
    await writer.close()


async def test_a_database_that_fails_is_asked_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project_id = await make_project(database)
    fail(monkeypatch, database, times=2)
    writer = InteractionWriter(database)
    writer.start()
    with caplog.at_level(logging.ERROR):
        await writer.record(interaction(project_id))
        await writer.close()
    assert (writer.written, writer.retries) == (1, 2)
    assert "1 interactions could not be written" in caplog.text


@on_both
async def test_only_what_cannot_be_written_is_refused(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    project_id = await make_project(database)
    writer = InteractionWriter(database)
    await writer.record(interaction(uuid.uuid4()))  # of a project that was deleted meanwhile
    for number in range(20):
        await writer.record(interaction(project_id, str(number)))
    last = await writer.record(interaction(project_id))
    with pytest.raises(InvalidRequestError, match="is recorded already"):
        await writer.record(interaction(project_id, id=last))
    with caplog.at_level(logging.ERROR):
        writer.start()
        await writer.close()
    assert (writer.written, writer.refused, await count(database)) == (21, 1, 21)
    assert "the database refuses interaction" in caplog.text


async def test_a_full_line_lets_nobody_in_until_there_is_room(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    project_id = await make_project(database)
    writer = InteractionWriter(database, max_pending_characters=5000)
    with caplog.at_level(logging.WARNING):
        tasks = [asyncio.create_task(writer.record(interaction(project_id, "x" * 1000))) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert sum(task.done() for task in tasks) == 2
        writer.start()
        await asyncio.gather(*tasks)
    await writer.close()
    assert (writer.written, await count(database)) == (10, 10)
    assert writer.waits == 8
    assert "requests wait for them" in caplog.text


async def test_one_that_is_larger_than_the_line_passes_alone(database: Database) -> None:
    writer = InteractionWriter(database, max_pending_characters=5000)
    writer.start()
    await writer.record(interaction(await make_project(database), "x" * 100_000))
    await writer.close()
    assert writer.written == 1


async def test_what_a_dead_database_does_not_take_is_told(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project_id = await make_project(database)
    monkeypatch.setattr("harmonia.server.services.interactions.writer.CLOSE_S", 0.2)
    fail(monkeypatch, database, times=10**6)
    writer = InteractionWriter(database)
    writer.start()
    with caplog.at_level(logging.ERROR):
        await writer.record(interaction(project_id))
        await writer.close()
    assert "1 interactions are lost" in caplog.text


def test_prompts_are_equal_by_roles_texts_and_images() -> None:
    plain = [{"role": "user", "content": "hi"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"}]
    image = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": "x"}]}]
    assert prompt_hash(plain) == prompt_hash(parts) != prompt_hash(image)
    assert prompt_hash(plain) != prompt_hash([{"role": "system", "content": "hi"}])


def test_labels_that_cannot_be_kept_are_refused_before_the_answer() -> None:
    assert checked_labels({"a": ""}) == {"a": ""}
    for labels in ({"": "x"}, {"k" * 256: "x"}, {"k": "v" * 1025}):
        with pytest.raises(InvalidRequestError, match="keys have 1 to 255"):
            checked_labels(labels)
