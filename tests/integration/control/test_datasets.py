"""Data sets through the published SDK, and requests that it would not make."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from harmonia.client.data import read_threads
from harmonia.config.control import ControlConfig
from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.datasets import Dataset
from harmonia.server.services.access import Caller
from harmonia.server.services.datasets.datasets import NewDataset
from harmonia.server.services.datasets.uploads import NewUpload
from harmonia.server.services.people.projects import NewProject
from harmonia.server.services.services import Services
from tests.integration.control.conftest import Plane, on_both

USER = [{"role": "user", "content": "Grüße 👋"}]
ROW = {"messages": USER, "completion": "Hallo", "feedbacks": {"good": True, "stars": 4}}
CREATE = (
    "mutation($input: DatasetCreate!, $file: Upload!) { createDataset(input: $input, file: $file) { id key kind } }"
)


@pytest.fixture
def sdk(adaptive: Adaptive) -> Iterator[Adaptive]:
    """With a project."""
    adaptive.projects.create("texts", "Texts")
    adaptive.set_default_project("texts")
    yield adaptive
    adaptive.close()


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def metrics(sdk: Adaptive) -> list[str | None]:
    project = sdk.projects.get("texts")
    assert project is not None
    return sorted(item.key for item in project.metrics)


def stored(folder: Path) -> list[Path]:
    return [path for path in (folder / "files").rglob("*") if path.is_file()]


def create(plane: Plane, content: bytes, **fields: Any) -> dict[str, Any]:
    """`createDataset` as a form, with whatever fields."""
    operations = {"query": CREATE, "variables": {"input": {"project": "texts", "name": "x"} | fields, "file": None}}
    answer = httpx.post(
        f"{plane.url}/api/graphql",
        data={"operations": json.dumps(operations), "map": '{"0": ["variables.file"]}'},
        files={"0": ("x", content, "application/jsonl")},
        headers={"authorization": f"Bearer {plane.api_key}"},
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@on_both
def test_a_small_data_set_comes_and_goes(plane: Plane, sdk: Adaptive, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW, ROW)
    made = sdk.datasets.upload(file, "greetings", name="Greetings")
    assert (made.key, made.name, made.kind.value, made.records) == (
        "greetings",
        "Greetings",
        "PROMPT_COMPLETION_SCORE",
        2,
    )
    usage = {item.metric.key: (item.metric.kind.value, item.score_count) for item in made.metrics_usage}
    assert usage == {"good": ("BOOL", 2), "stars": ("SCALAR", 2)}
    assert [item.id for item in sdk.datasets.list()] == [made.id]
    for name in ("greetings", made.id):
        found = sdk.datasets.get(name)
        assert found is not None
        assert found.model_dump() == made.model_dump()
    sdk.datasets.download("greetings", str(tmp_path / "again.jsonl"))
    assert (tmp_path / "again.jsonl").read_bytes() == Path(file).read_bytes()
    sdk.datasets.download("greetings", str(tmp_path / "recipe.jsonl"), format="recipe")
    threads = asyncio.run(read_threads(tmp_path / "recipe.jsonl", feedback_key="stars"))
    assert [thread.get_turns() for thread in threads] == [[("user", "Grüße 👋"), ("assistant", "Hallo")]] * 2
    assert threads[0].metadata == {"res": 4.0}
    assert sdk.datasets.delete("greetings") is True
    assert sdk.datasets.get("greetings") is None
    assert sdk.datasets.list() == []
    assert stored(tmp_path) == []


def test_a_big_data_set_comes_in_parts(sdk: Adaptive, tmp_path: Path) -> None:
    rows = [{"messages": USER, "completion": f"{at} " + "x" * 1000} for at in range(6000)]
    file = write(tmp_path / "big.jsonl", *rows)
    assert Path(file).stat().st_size > 5 << 20
    made = sdk.datasets.upload(file, "big")
    assert (made.records, made.kind.value) == (6000, "PROMPT_COMPLETION")
    sdk.datasets.download(made.id, str(tmp_path / "again.jsonl"))
    assert (tmp_path / "again.jsonl").read_bytes() == Path(file).read_bytes()
    assert len(stored(tmp_path)) == 2


def test_a_big_data_set_with_wrong_lines_leaves_nothing(sdk: Adaptive, tmp_path: Path) -> None:
    rows = [{"messages": USER, "completion": "x" * 1000} for _ in range(5500)]
    bad = write(tmp_path / "bad.jsonl", *rows[:5000], {"messages": 3}, *rows[5000:])
    with pytest.raises(Exception, match="line 5001: messages must be a list of at least one message, got 3"):
        sdk.datasets.upload(bad, "big")
    assert sdk.datasets.list() == []
    assert stored(tmp_path) == []
    assert sdk.datasets.upload(write(tmp_path / "good.jsonl", *rows[:5]), "big").records == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file has no rows"),
        (b"\xef\xbb\xbf\n", "the file has no rows"),
        (b'{"messages": []}', "line 1: messages must be"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\r\n{"x": 1}', "line 2: 'messages' is missing"),
        (b"[]", "line 1: a row must be a JSON object"),
    ],
)
def test_a_wrong_file_makes_no_data_set(plane: Plane, sdk: Adaptive, tmp_path: Path, content: bytes, says: str) -> None:
    for _ in range(2):  # the key is free again
        (error,) = create(plane, content)["errors"]
        assert says in error["message"]
    assert sdk.datasets.list() == []
    assert metrics(sdk) == []
    assert stored(tmp_path) == []


def test_keys_follow_from_names_and_are_given_once(plane: Plane, sdk: Adaptive) -> None:
    content = json.dumps(ROW).encode()
    assert create(plane, content, name="Café / My Set")["data"]["createDataset"]["key"] == "cafe-my-set"
    assert create(plane, content, name="My Set")["data"]["createDataset"]["key"] == "my-set"
    assert "delete it first, or choose another key" in create(plane, content, name="My set")["errors"][0]["message"]
    sdk.projects.create("others", "Others")
    assert create(plane, content, name="My Set", project="others")["data"]["createDataset"]["key"] == "my-set"
    for fields, says in (
        ({"key": "a/b"}, "holds no '/'"),
        ({"key": "../x"}, "is no key"),
        ({"name": "!!"}, "no key can be made"),
        ({"name": " "}, "a name has 1 to 255 characters"),
        ({"name": "x" * 256}, "a name has 1 to 255 characters"),
        ({"project": "nowhere"}, "does not exist"),
    ):
        assert says in create(plane, content, **fields)["errors"][0]["message"]


async def test_of_many_at_once_one_gets_the_key(plane: Plane, sdk: Adaptive) -> None:
    content = json.dumps(ROW).encode()
    answers = await asyncio.gather(*(asyncio.to_thread(create, plane, content, name="same") for _ in range(6)))
    assert sum("errors" not in answer for answer in answers) == 1
    assert all("already" in answer["errors"][0]["message"] for answer in answers if "errors" in answer)
    answers = await asyncio.gather(*(asyncio.to_thread(create, plane, content, name=f"n{at}") for at in range(6)))
    assert not [answer for answer in answers if "errors" in answer]
    assert metrics(sdk) == ["good", "stars"]


def test_metrics_take_only_what_they_take(sdk: Adaptive, tmp_path: Path) -> None:
    sdk.feedback.register_key("texts", "good", kind="scalar")
    with pytest.raises(GraphQLClientGraphQLMultiError, match=r"line 1: .*'good' takes finite numbers"):
        sdk.datasets.upload(write(tmp_path / "a.jsonl", ROW), "a")
    preference = {"messages": USER, "preferred_completion": "a", "other_completion": "b", "feedback_key": "taste"}
    made = sdk.datasets.upload(write(tmp_path / "b.jsonl", preference), "b")
    assert made.kind.value == "PREFERENCE"
    assert [(use.metric.key, use.score_count, use.comparison_count) for use in made.metrics_usage] == [("taste", 0, 1)]


def test_who_may_see_and_who_may_change(
    plane: Plane, sdk: Adaptive, tmp_path: Path, adaptive_as: Callable[[str], Adaptive]
) -> None:
    file = write(tmp_path / "rows.jsonl", ROW)
    made = sdk.datasets.upload(file, "rows")
    sdk.teams.create("readers", "Readers")
    sdk.teams.create("strangers", "Strangers")
    keys = [
        sdk.users.create_service_account(name=team, teams_with_role=[(team, "read-only")]).api_key
        for team in ("readers", "strangers")
    ]
    reader, stranger = (adaptive_as(key) for key in keys)
    sdk.projects.share("texts", "readers", "read-only")
    reader.datasets.download("rows", str(tmp_path / "read.jsonl"), project="texts")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="dataset:create"):
        reader.datasets.upload(file, "mine", project="texts")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="dataset:create"):
        reader.datasets.delete("rows", project="texts")
    assert stranger.datasets.get("rows", project="texts") is None
    with pytest.raises(GraphQLClientGraphQLMultiError, match="dataset:read"):
        stranger.datasets.list(project="texts")
    url = plane.url + made.download_url
    assert httpx.get(url, headers={"authorization": f"Bearer {keys[1]}"}).status_code == 403
    assert httpx.get(url).status_code == 401


def test_downloads_that_are_not_there(plane: Plane, sdk: Adaptive, tmp_path: Path) -> None:
    made = sdk.datasets.upload(write(tmp_path / "rows.jsonl", ROW), "rows")
    with httpx.Client(base_url=plane.url, headers={"authorization": f"Bearer {plane.api_key}"}) as http:
        answer = http.get("/api/v1/projects/texts/datasets/rows/download")
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["content-length"] == str(len(answer.content))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert http.get("/api/v1/projects/texts/datasets/none/download").status_code == 404
        assert http.get("/api/v1/projects/none/datasets/rows/download").status_code == 404
        assert http.get(made.download_url, params={"format": "zip"}).status_code == 400
        original = next(path for path in stored(tmp_path) if b'"messages"' in path.read_bytes())
        original.unlink()
        assert b'"prompt"' in http.get(made.download_url).content  # in the other form, as the contract says
        for path in stored(tmp_path):
            path.unlink()
        assert http.get(made.download_url).status_code == 404
    assert sdk.datasets.delete("rows") is True
    with pytest.raises(AdaptiveEntityNotFoundError, match="Dataset 'rows' does not exist"):
        sdk.datasets.delete("rows")


def test_an_upload_becomes_a_data_set_once_all_of_it_is_there(plane: Plane, sdk: Adaptive) -> None:
    headers = {"authorization": f"Bearer {plane.api_key}"}
    with httpx.Client(base_url=f"{plane.url}/api", headers=headers) as http:
        session_id = http.post("/v1/upload/init", json={"total_parts_count": 2}).json()["session_id"]
        text = (json.dumps({"messages": USER, "completion": "x"}) + "\n").encode()
        for number, part in ((2, text[10:] + text), (1, text[:10])):
            query = {"session_id": session_id, "part_number": number}
            if number == 1:
                assert "1 of 2 parts are missing: 1" in from_upload(http, session_id)["errors"][0]["message"]
            assert http.post("/v1/upload/part", params=query, content=part).is_success
        assert "permission" not in str(from_upload(http, str(uuid.uuid4())))
        status = from_upload(http, session_id)["data"]["createDatasetFromMultipartUpload"]
        end = time.monotonic() + 60
        while (made := sdk.datasets.get(status["datasetId"])) is None or made.records != 2:
            assert time.monotonic() < end, "the upload was not processed"
            time.sleep(0.05)
        assert "was used already" in from_upload(http, session_id, name="again")["errors"][0]["message"]


def from_upload(http: httpx.Client, session_id: str, name: str = "parts") -> dict[str, Any]:
    query = """mutation($input: DatasetCreateFromMultipartUpload!) {
      createDatasetFromMultipartUpload(input: $input) { datasetId status progress error } }"""
    given = {"project": "texts", "name": name, "uploadSessionId": session_id, "key": None, "source": None}
    body: dict[str, Any] = http.post("/graphql", json={"query": query, "variables": {"input": given}}).json()
    return body


# ------------------------------------------------------------------------------------------------ without a server


@on_both
async def test_what_a_process_leaves_undone_the_next_one_does(database: Database, tmp_path: Path) -> None:
    config = ControlConfig(data_dir=tmp_path)
    first = Services(config, database)
    caller = await admin(first)
    row = await uploaded(first, caller, [json.dumps(ROW).encode() + b"\n"] * 3)
    await first.datasets.close()  # before the background had its turn, as if the process had died
    assert (await first.datasets.progress(caller, "texts", row.id)).status == "PENDING"
    second = Services(config, database)
    await second.datasets.start()
    done = await settled(second, caller, row.id)
    assert (done.status, done.records, done.upload_id) == ("READY", 3, None)
    assert len(stored(tmp_path)) == 2
    await second.datasets.close()


async def test_failures_are_told_and_free_the_key(database: Database, tmp_path: Path) -> None:
    services = Services(ControlConfig(data_dir=tmp_path), database)
    caller = await admin(services)
    for _ in range(2):
        row = await uploaded(services, caller, [b"{}\n" * 30])
        failed = await settled(services, caller, row.id)
        assert (failed.status, failed.key) == ("FAILED", None)
        assert failed.error is not None and failed.error.endswith("and 20 more lines are wrong")
        assert await services.datasets.find(caller, "texts", str(row.id)) is None
        async with asyncio.timeout(60):
            while stored(tmp_path):  # the reason is told first
                await asyncio.sleep(0.01)
    await services.datasets.close()


async def test_a_data_set_deleted_while_it_is_made_leaves_nothing(database: Database, tmp_path: Path) -> None:
    services = Services(ControlConfig(data_dir=tmp_path), database)
    caller = await admin(services)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield json.dumps(ROW).encode()
        reached.set()
        await go_on.wait()

    work = asyncio.create_task(services.datasets.create(caller, NewDataset(project="texts", name="slow"), slow()))
    await reached.wait()
    await services.datasets.delete(caller, "texts", "slow")
    go_on.set()
    with pytest.raises(InvalidRequestError, match="was deleted while"):
        await work
    assert stored(tmp_path) == []
    assert await services.datasets.all(caller, "texts") == []


async def test_a_client_that_leaves_takes_its_data_set_along(database: Database, tmp_path: Path) -> None:
    services = Services(ControlConfig(data_dir=tmp_path), database)
    caller = await admin(services)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield json.dumps(ROW).encode() + b"\n"
            await asyncio.sleep(0)

    work = asyncio.create_task(services.datasets.create(caller, NewDataset(project="texts", name="slow"), endless()))
    await asyncio.sleep(0.2)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await services.datasets.all(caller, "texts") == []
    assert stored(tmp_path) == []


async def admin(services: Services) -> Caller:
    """With a project."""
    key = await services.people.bootstrap("ada@example.com")
    assert key is not None
    caller = await services.access.caller(key)
    await services.projects.create(caller, NewProject("Texts"))
    return caller


async def uploaded(services: Services, caller: Caller, parts: list[bytes]) -> Dataset:
    session = await services.uploads.begin(caller, NewUpload(len(parts)))
    for number, part in enumerate(parts, 1):
        await services.uploads.put_part(caller, str(session.id), number, once(part))
    new = NewDataset(project="texts", name="parts")
    return await services.datasets.create_from_upload(caller, new, str(session.id))


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def settled(services: Services, caller: Caller, dataset_id: uuid.UUID) -> Dataset:
    async with asyncio.timeout(60):
        while True:
            row = await services.datasets.progress(caller, "texts", dataset_id)
            if row.status in ("READY", "FAILED"):
                return row
            await asyncio.sleep(0.02)
