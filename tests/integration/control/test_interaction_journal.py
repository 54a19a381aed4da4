"""What a server that is killed had not written yet: there at the next start, exactly once."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.services.interactions import journal as module
from harmonia.server.services.interactions.interaction import Interaction
from harmonia.server.services.interactions.journal import Journal
from harmonia.server.services.interactions.writer import InteractionWriter
from tests.integration.control.conftest import on_both
from tests.integration.control.test_interaction_writer import fail, interaction, make_project


def opened(folder: Path) -> tuple[Journal, list[Interaction]]:
    journal = Journal(folder, "sqlite:///here")
    return journal, journal.open()


def some(count: int, **more: Any) -> list[Interaction]:
    return [interaction(uuid.uuid4(), f"answer {number}", **more) for number in range(count)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.journal"))


async def texts(database: Database) -> list[str]:
    async with database.read() as session:
        return sorted((await session.execute(select(Completion.completion))).scalars())


@on_both
async def test_what_was_in_the_line_is_written_at_the_next_start(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id = await make_project(database)
    killed = InteractionWriter(database, opened(tmp_path)[0])  # it never begins to write, as one that is killed
    items = [interaction(project_id, f"{number}", labels={"n": f"{number}"}) for number in range(10)]
    for item in items:
        await killed.record(item)

    # The second is killed after the database had the first three, and before the journal heard of it.
    second = InteractionWriter(database, Journal(tmp_path, "sqlite:///here"))
    monkeypatch.setattr(second, "_run", _nothing)
    second.start()
    await second._insert(list(second._line.values())[:3])
    database.usage.registry.unregister(second)
    assert await texts(database) == ["0", "1", "2"]

    third = InteractionWriter(database, Journal(tmp_path, "sqlite:///here"))
    third.start()
    await third.settled()
    assert await texts(database) == sorted(str(number) for number in range(10))
    await third.record(interaction(project_id, "new"))
    await third.close()
    assert not files(tmp_path)
    assert len(await texts(database)) == 11


async def _nothing() -> None: ...


async def test_a_database_that_fails_until_the_end_leaves_them_to_the_next_start(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project_id = await make_project(database)
    with monkeypatch.context() as patch:
        patch.setattr("harmonia.server.services.interactions.writer.CLOSE_S", 0.2)
        fail(patch, database, times=10_000)
        writer = InteractionWriter(database, Journal(tmp_path, "sqlite:///here"))
        writer.start()
        await writer.record(interaction(project_id, "kept"))
        await writer.close()
    assert "1 interactions are left to the next start" in caplog.text
    writer = InteractionWriter(database, Journal(tmp_path, "sqlite:///here"))
    writer.start()
    await writer.close()
    assert await texts(database) == ["kept"]


async def test_an_answer_to_a_commit_that_got_lost_makes_no_second(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id = await make_project(database)
    writer = InteractionWriter(database)
    insert, calls = writer._insert, 0

    async def insert_and_break(batch: list[Interaction]) -> None:
        nonlocal calls
        calls += 1
        await insert(batch)
        if calls == 1:
            raise OSError("the connection broke after the commit")

    monkeypatch.setattr(writer, "_insert", insert_and_break)
    writer.start()
    await writer.record(interaction(project_id, "once"))
    await writer.close()
    assert await texts(database) == ["once"]
    assert (writer.refused, writer.retries) == (0, 1)


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    whole = Interaction(
        project_id=uuid.uuid4(),
        messages=[{"role": "user", "content": parts}, {"role": "tool", "content": "4\0 é \u2028"}],
        completion="ü" * 100_000,
        model_key="tiny",
        user="ada",
        labels={"a": "b"},
        parameters={"temperature": 0.5, "stop": ["x"], "n": 2},
        timings={"ttft_ms": 1.5},
        usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        created_by=uuid.uuid4(),
    )
    journal, _ = opened(tmp_path)
    journal.record(whole)
    assert opened(tmp_path)[1] == [whole]
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o600}


def test_a_frame_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    items = some(3)
    for item in items[:2]:
        journal.record(item)
    before = files(tmp_path)[0].stat().st_size
    journal.record(items[2])
    path = files(tmp_path)[0]
    data = path.read_bytes()
    for cut in range(before, len(data), 7):
        path.write_bytes(data[:cut])
        assert list(module._entries(path)) == items[:2]
    path.write_bytes(data[:-1] + b"?")
    assert list(module._entries(path)) == items[:2]


def test_files_grow_only_so_far_and_go_when_they_are_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FILE_BYTES", 2000)
    journal, _ = opened(tmp_path)
    items = some(30)
    for item in items:
        journal.record(item)
    assert len(files(tmp_path)) > 3
    journal.settle([item.id for item in items[20:]])
    journal.settle([items[0].id])
    again, left = opened(tmp_path)
    assert left == items[1:20]
    again.settle([item.id for item in items[1:20]])
    assert sum(path.stat().st_size for path in files(tmp_path)) == 0
    again.close()
    assert not files(tmp_path)


def test_another_databases_interactions_stay_where_they_are(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    journal.record(some(1)[0])
    other = Journal(tmp_path, "postgresql://elsewhere")
    assert other.open() == []
    other.close()
    assert len(opened(tmp_path)[1]) == 1


def test_a_full_disk_is_told_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal, _ = opened(tmp_path)
    first, second, third = some(3)
    journal.record(first)
    write = os.write
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(module.os, "write", lambda descriptor, data: write(descriptor, data[:9]))
        journal.record(second)
    assert journal.failures == 1
    assert "is the disk full" in caplog.text
    journal.record(third)
    assert opened(tmp_path)[1] == [first, third]


def test_a_file_that_cannot_be_removed_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FILE_BYTES", 0)
    journal, _ = opened(tmp_path)
    items = some(3)
    for item in items:
        journal.record(item)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _refused)
        journal.settle([items[0].id])
    assert journal.failures == 1
    journal.settle([item.id for item in items])
    journal.close()


def _refused(*_: object, **__: object) -> None:
    raise OSError("the file system is read-only")
