"""`harmonia up` with a tiny real model, on SQLite and on PostgreSQL, and every client that people have.

Each story goes through every method of every resource of its client; a method that a story leaves out fails the test
unless the story says why.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from adaptive_sdk import Adaptive, AsyncAdaptive
from openai import AsyncOpenAI, OpenAI

from benchmarks import postgres
from harmonia.sdk import Adaptive as Ours
from harmonia.sdk import AsyncAdaptive as AsyncOurs
from tests.integration.control.hub import Hub
from tests.integration.control.receiving import Listener
from tests.integration.control.starting import started
from tests.integration.control.stories import openai_client, ours, published
from tests.integration.control.stories.scene import HUB_MODEL, MODEL, Scene, until
from tests.integration.control.surface import Surface
from tests.integration.control.test_graders import LengthServer

pytestmark = pytest.mark.timeout(400)  # a story is long where other tests keep the machine busy

NewScene = Callable[[str], Scene]
VARIABLES = {
    "ADAPTIVE_GRADERS__ALLOW_PRIVATE": "true",
    "ADAPTIVE_NOTIFICATIONS__ALLOW_PRIVATE": "true",
    "ADAPTIVE_HUB__SPARE_DISK_BYTES": "0",
}
SAMPLES = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
"""The published SDK makes them with hypothesis."""
on_postgresql = pytest.mark.parametrize("up", ["postgresql"], indirect=True)
"""Asynchronous clients ask the server for the same; one database is enough for them."""


@pytest.fixture(scope="module")
def rewards() -> Iterator[str]:
    """Where the vendor's reward server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LengthServer(port)
    while not server.server.started:
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{port}"
    server.server.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def up(
    request: pytest.FixtureRequest,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str]]:
    """Where `harmonia up MODEL` answers, and the key that it printed."""
    options = [str(tiny)]
    if request.param == "postgresql":
        server: postgres.Postgres = request.getfixturevalue("postgresql")
        options += ["--database", server.new_database()]
    hub = Hub({HUB_MODEL: tiny})
    variables = {**VARIABLES, "ADAPTIVE_HUB__ENDPOINT": hub.url}
    with closing(hub), started(tmp_path_factory.mktemp("up"), *options, **variables) as running:
        with Ours(running.url, running.api_key) as sdk:
            until(lambda: sdk.models.get(MODEL), bool)
            sdk.models.wait(MODEL)
        yield running.url, running.api_key


@pytest.fixture
def new_scene(
    up: tuple[str, str], rewards: str, tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path: Path
) -> Iterator[NewScene]:
    url, api_key = up
    listener = Listener()
    yield lambda name: Scene(name, url, api_key, tmp_path, tiny, tiny_adapters[0], listener, rewards)
    listener.close()


@SAMPLES
def test_the_published_sdk(new_scene: NewScene) -> None:
    scene = new_scene("tickets")
    surface = Surface(Adaptive(base_url=scene.url, api_key=scene.api_key), "adaptive_sdk.resources")
    with closing(surface.of(Adaptive)) as sdk:
        published.tell(sdk, scene)
    surface.check(published.EXCUSED)


@SAMPLES
@on_postgresql
def test_the_published_asynchronous_sdk(new_scene: NewScene) -> None:
    scene = new_scene("later")
    with asyncio.Runner() as runner, ExitStack() as closed:
        sdk = AsyncAdaptive(base_url=scene.url, api_key=scene.api_key)
        surface = Surface(sdk, "adaptive_sdk.resources", runner.run)
        closed.callback(surface.of(AsyncAdaptive).close)
        published.tell(surface.of(Adaptive), scene, trains=False)
    surface.check(published.EXCUSED)


def test_our_sdk(new_scene: NewScene) -> None:
    scene = new_scene("ours")
    surface = Surface(Ours(scene.url, scene.api_key), "harmonia.sdk")
    with closing(surface.of(Ours)) as sdk:
        ours.tell(sdk, scene)
    surface.check({})


@on_postgresql
def test_our_asynchronous_sdk(new_scene: NewScene) -> None:
    scene = new_scene("ours-later")
    with asyncio.Runner() as runner, ExitStack() as closed:
        surface = Surface(AsyncOurs(scene.url, scene.api_key), "harmonia.sdk", runner.run)
        closed.callback(surface.of(AsyncOurs).aclose)
        ours.tell(surface.of(Ours), scene, trains=False)
    surface.check({})


def test_openais_client(new_scene: NewScene) -> None:
    scene = new_scene("openai")
    with OpenAI(base_url=f"{scene.url}/v1", api_key=scene.api_key, max_retries=0) as client:
        openai_client.tell(client, scene)


@on_postgresql
def test_openais_asynchronous_client(new_scene: NewScene) -> None:
    scene = new_scene("openai-later")
    with asyncio.Runner() as runner, ExitStack() as closed:
        client = AsyncOpenAI(base_url=f"{scene.url}/api/v1", api_key=scene.api_key, max_retries=0)
        surface = Surface(client, "openai.resources", runner.run)
        closed.callback(surface.of(AsyncOpenAI).close)
        openai_client.tell(surface.of(OpenAI), scene)
