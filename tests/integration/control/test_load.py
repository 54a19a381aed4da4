"""Many callers at once: keys and projects mixed, slow readers, callers that leave, and those who may not ask."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client import AddModelInput
from sqlalchemy import select

from harmonia.config.control import ControlConfig
from harmonia.server.db.interactions import Completion, CompletionLabel
from tests.integration.control.conftest import Plane, on_both

PROJECTS = ("north", "south")
MODEL = "tiny"
QUESTIONS = ("Who?", "Where?", "When?")
NUM_TOKENS = 12
CHATS = 240
PATIENCE_S = 60
"""For a machine that has much else to do."""
WARM_UP = 24
GROWTH = 64
"""Files and connections that pools may open meanwhile; one left behind by each chat would be more."""
MEMORY_BYTES = 64 * 2**20

pytestmark = on_both


@dataclass
class Crowd:
    """Who asks, and what each chat should have given."""

    plane: Plane
    admin: str
    """A key for both projects."""
    local: str
    """A key for the first alone."""
    leaving: str
    """A key that is about to be taken away."""
    right: dict[str, str] = field(default_factory=dict)
    """The answer to each question."""
    told: dict[str, str] = field(default_factory=dict)
    """By label: the answers that must be stored."""
    left: set[str] = field(default_factory=set)
    """Labels of chats whose callers did not wait for the end."""

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self.plane.url, timeout=PATIENCE_S, limits=limits)


@pytest.fixture
def crowd(tiny: Path, tmp_path: Path, database_address: str) -> Iterator[Crowd]:
    with Plane(ControlConfig(data_dir=tmp_path, db={"url": database_address})) as plane:
        sdk = Adaptive(base_url=plane.url, api_key=plane.api_key)
        sdk.teams.create("others", "Others")
        keys = [
            sdk.users.create_service_account(name=name, teams_with_role=[("others", "inference")]).api_key
            for name in ("local", "leaving")
        ]
        sdk._gql_client.add_model(AddModelInput(path=str(tiny), name=MODEL, key=MODEL))
        for project in PROJECTS:
            sdk.projects.create(project, project)
            sdk.set_default_project(project)
            sdk.models.deploy(MODEL, wait=True)
        sdk.projects.share(PROJECTS[0], "others", "inference")
        yield Crowd(plane, plane.api_key, *keys)
        sdk.close()


def body_of(label: str, question: str, *, project: str = PROJECTS[0], **more: object) -> dict[str, object]:
    asked = {"messages": [{"role": "user", "content": question}], "labels": {"chat": label}}
    greedy = {"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    return {"model": f"{project}/{MODEL}", **asked, **greedy, **more}


async def post(client: httpx.AsyncClient, key: str, body: object) -> httpx.Response:
    return await client.post("/api/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})


async def whole(crowd: Crowd, client: httpx.AsyncClient, label: str, question: str) -> None:
    key, project = random.Random(label).choice(
        [(crowd.admin, PROJECTS[0]), (crowd.admin, PROJECTS[1]), (crowd.local, PROJECTS[0])]
    )
    answer = await post(client, key, body_of(label, question, project=project))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == f"{project}/{MODEL}"
    assert answer.json()["choices"][0]["message"]["content"] == crowd.right[question]
    crowd.told[label] = crowd.right[question]


async def unkept(crowd: Crowd, client: httpx.AsyncClient, label: str, question: str) -> None:
    answer = await post(client, crowd.local, body_of(label, question, store=False))
    assert answer.json()["choices"][0]["message"]["content"] == crowd.right[question]


async def streamed(crowd: Crowd, client: httpx.AsyncClient, label: str, question: str, pause_s: float = 0.0) -> None:
    headers = {"Authorization": f"Bearer {crowd.local}"}
    body, text, end = body_of(label, question, stream=True), "", ""
    async with client.stream("POST", "/api/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            await asyncio.sleep(pause_s)
            if line.startswith("data: {"):
                text += "".join(choice["delta"]["content"] for choice in json.loads(line[6:])["choices"])
            end = line or end
    assert (text, end) == (crowd.right[question], "data: [DONE]")
    crowd.told[label] = crowd.right[question]


async def slow(crowd: Crowd, client: httpx.AsyncClient, label: str, question: str) -> None:
    await streamed(crowd, client, label, question, pause_s=0.05)


async def leave(crowd: Crowd, client: httpx.AsyncClient, label: str, question: str) -> None:
    headers = {"Authorization": f"Bearer {crowd.admin}"}
    body = body_of(label, question, stream=True, max_tokens=400)
    crowd.left.add(label)
    async with client.stream("POST", "/api/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        await anext(answer.aiter_lines())


async def refused(crowd: Crowd, client: httpx.AsyncClient, label: str, question: str) -> None:
    for key, body, status in (
        ("hk-wrong", body_of(label, question), 401),
        (crowd.local, body_of(label, question, project=PROJECTS[1]), 403),
        (crowd.admin, body_of(label, question, project="nowhere"), 404),
        (crowd.admin, body_of(label, question, max_tokens="many"), 400),
    ):
        answer = await post(client, key, body)
        assert answer.status_code == status, answer.text


KINDS: tuple[Callable[[Crowd, httpx.AsyncClient, str, str], Awaitable[None]], ...] = (
    whole, streamed, whole, streamed, slow, leave, unkept, refused,
)  # fmt: skip


async def storm(crowd: Crowd, name: str, size: int) -> None:
    """So many chats at once, of every kind."""
    async with crowd.client() as client, asyncio.TaskGroup() as chats:
        for number in range(size):
            kind, question = KINDS[number % len(KINDS)], QUESTIONS[number // len(KINDS) % len(QUESTIONS)]
            chats.create_task(kind(crowd, client, f"{name}-{number}", question))


async def learn(crowd: Crowd) -> None:
    async with crowd.client() as client:
        for question in QUESTIONS:
            answer = await post(client, crowd.admin, body_of("alone", question, store=False))
            crowd.right[question] = answer.json()["choices"][0]["message"]["content"]


async def lose_key(crowd: Crowd) -> None:
    """A key that is taken away while everybody asks fails from the next call on."""
    sdk = Adaptive(base_url=crowd.plane.url, api_key=crowd.admin)
    async with crowd.client() as client:
        body = body_of("revoked", QUESTIONS[0], store=False)
        assert (await post(client, crowd.leaving, body)).status_code == 200
        await asyncio.to_thread(sdk.users.delete, "leaving@system.adaptive.local")
        assert [(await post(client, crowd.leaving, body)).status_code for _ in range(3)] == [401] * 3
    sdk.close()


async def stored(crowd: Crowd) -> list[tuple[str, str]]:
    """Label and answer of everything that is kept, asked in the loop of the server."""
    services = crowd.plane.services
    assert services is not None

    async def read() -> list[tuple[str, str]]:
        await services.interaction_writer.settled()
        query = select(CompletionLabel.value, Completion.completion).join(
            Completion, Completion.id == CompletionLabel.completion_id
        )
        async with services.database.read() as session:
            return [(row[0], row[1]) for row in (await session.execute(query)).all()]

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(read(), loop_of(crowd)))


def loop_of(crowd: Crowd) -> asyncio.AbstractEventLoop:
    assert crowd.plane.services is not None and crowd.plane.services.interaction_writer._task is not None
    return crowd.plane.services.interaction_writer._task.get_loop()


def held(crowd: Crowd) -> dict[str, int]:
    """What the server holds on to."""
    assert crowd.plane._server is not None
    return {
        "tasks": len(asyncio.all_tasks(loop_of(crowd))),
        "connections": len(crowd.plane._server.server_state.connections),
        "files": psutil.Process().num_fds(),
    }


async def test_a_storm_is_answered_right_kept_once_and_leaves_nothing_behind(crowd: Crowd) -> None:
    await learn(crowd)
    await storm(crowd, "first", WARM_UP)
    before, memory = held(crowd), psutil.Process().memory_info().rss
    async with asyncio.TaskGroup() as group:
        group.create_task(storm(crowd, "second", CHATS))
        group.create_task(lose_key(crowd))
    found = await stored(crowd)
    assert dict(found).items() >= crowd.told.items()
    assert set(Counter(label for label, _ in found).values()) == {1}
    assert {label for label, _ in found} - crowd.told.keys() <= crowd.left
    end = time.monotonic() + PATIENCE_S
    while any(value > before[name] + (GROWTH if name == "files" else 0) for name, value in held(crowd).items()):
        assert time.monotonic() < end, (before, held(crowd))
        await asyncio.sleep(0.1)
    assert psutil.Process().memory_info().rss < memory + MEMORY_BYTES
