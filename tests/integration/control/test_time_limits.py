"""How long an answer may take: limits of requests, of models and of the server."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from harmonia.config.control import ControlConfig, ControlServer
from harmonia.sdk import Adaptive
from tests.integration.control.conftest import Plane

P = "tickets"
PLACE = {"compute_pools": ["default"]}
TIMEOUTS = re.compile(r"^harmony_ttft_timeout_count\{.*\} (\d+)", re.M)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("plane")
    with Plane(ControlConfig(data_dir=folder, server=ControlServer(timeout_seconds=1.0))) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(plane: Plane, tiny: Path) -> Iterator[Adaptive]:
    with Adaptive(plane.url, plane.api_key, P) as admin:
        admin.projects.create(P)
        admin.models.add(str(tiny), "tiny", "tiny")
        admin.models.deploy("tiny", wait=True)
        yield admin


@pytest.fixture(scope="module")
def http(plane: Plane, sdk: Adaptive) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {plane.api_key}"}
    with httpx.Client(base_url=plane.url, headers=headers, timeout=60) as opened:
        yield opened


def ask(http: httpx.Client, **more: object) -> httpx.Response:
    """A question that no cache knows, long enough to take more than a millisecond."""
    messages = [{"role": "user", "content": f"{uuid.uuid4()}" + "?" * 400}]
    body = {"model": f"{P}/tiny", "messages": messages, "max_tokens": 1, "store": False, **more}
    return http.post("/api/v1/chat/completions", json=body)


def num_timeouts(http: httpx.Client) -> int:
    return sum(int(number) for number in TIMEOUTS.findall(http.get("/metrics").text))


@pytest.mark.parametrize("stream", [False, True])
def test_a_late_first_token_is_408_and_counted(sdk: Adaptive, http: httpx.Client, stream: bool) -> None:
    before = num_timeouts(http)
    answer = ask(http, max_ttft_ms=0, stream=stream)
    assert answer.status_code == 408
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("max_ttft_ms", "timeout")
    assert answer.headers["x-should-retry"] == "false"
    assert num_timeouts(http) == before + 1


@contextmanager
def busy(http: httpx.Client) -> Iterator[None]:
    """While the worker computes many answers, each of its steps takes milliseconds."""
    body = {"model": f"{P}/tiny", "messages": [{"role": "user", "content": "a"}], "stream": True, "store": False}
    long = {"n": 128, "max_tokens": 400, "ignore_eos": True}
    with http.stream("POST", "/api/v1/chat/completions", json={**body, **long, "max_ttft_ms": 60_000}):
        yield


def test_the_limit_of_a_request_goes_before_that_of_the_model(sdk: Adaptive, http: httpx.Client) -> None:
    sdk.models.update("tiny", placement={**PLACE, "max_ttft_ms": 1})
    with busy(http):
        late = ask(http)
        assert (late.status_code, "max_ttft_ms is 1" in late.text) == (408, True)
        assert ask(http, max_ttft_ms=60_000).status_code == 200
        sdk.models.update("tiny", placement={**PLACE, "max_ttft_ms": None})
        assert ask(http).status_code == 200
    assert ask(http, max_ttft_ms=-1).status_code == 400


def test_a_response_that_never_begins_is_ended_and_one_that_has_begun_is_not(sdk: Adaptive, http: httpx.Client) -> None:
    long = {"max_tokens": 400, "messages": [{"role": "user", "content": "a"}], "ignore_eos": True, "n": 128}
    with ThreadPoolExecutor(4) as pool:  # so many that no machine has them within a second
        for late in pool.map(lambda _: ask(http, **long), range(4)):
            assert (late.status_code, late.json()["error"]["code"]) == (408, "timeout")
            assert "ADAPTIVE_SERVER__TIMEOUT_SECONDS" in late.json()["error"]["message"]
        begun = time.monotonic()
        for streamed in pool.map(lambda _: ask(http, stream=True, **long), range(2)):
            assert streamed.text.endswith("data: [DONE]\n\n")
        assert time.monotonic() - begun > 1
