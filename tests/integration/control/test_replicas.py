"""A model on two pools: where requests go, and what becomes of them when a worker dies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from harmonia.config.control import Compute, ControlConfig, PoolSettings
from harmonia.sdk import Adaptive
from tests.integration.control.conftest import Plane

P = "tickets"
REQUESTS = re.compile(r'^harmony_generation_requests_count\{.*replica="(\w+)".*\} (\d+)', re.M)
LONG = {"max_tokens": 300, "ignore_eos": True, "temperature": 0, "store": False}
PATIENCE_S = 60
SILENCE_S = 4.0


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("two pools need two cores")
    pools = tuple(PoolSettings(key=f"pool-{number}", devices=(f"cpu:{cores[number]}",)) for number in range(2))
    folder, client = tmp_path_factory.mktemp("plane"), {"max_silence_secs": SILENCE_S}
    with Plane(ControlConfig(data_dir=folder, compute=Compute(pools=pools), http_client=client)) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(
    plane: Plane, tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adaptive]:
    adapter = shutil.copytree(tiny_adapters[0], tmp_path_factory.mktemp("named") / "adapter")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tiny)}))
    with Adaptive(plane.url, plane.api_key, P, timeout_s=PATIENCE_S) as admin:
        admin.projects.create(P)
        for path, key in ((tiny, "tiny"), (adapter, "support")):
            admin.models.add(str(path), key, key)
            admin.models.deploy(key, wait=True, placement={"compute_pools": ["pool-0", "pool-1"]})
        until(lambda: all(len(workers(plane, key)) == 2 for key in ("tiny", "support")))
        yield admin


@pytest.fixture(scope="module")
def http(plane: Plane, sdk: Adaptive) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {plane.api_key}"}
    with httpx.Client(base_url=plane.url, headers=headers, timeout=PATIENCE_S) as opened:
        yield opened


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


def workers(plane: Plane, key: str = "tiny") -> dict[str, int]:
    """Processes that serve a model, by replica."""
    assert plane.services is not None
    router = plane.services.serving.router
    found = {status.replica: status.pid for status in router.statuses()}
    connected = {name: router.find(name) for name in found}
    return {name: found[name] for name, worker in connected.items() if worker is not None and key in worker.keys}


def counts(http: httpx.Client) -> dict[str, int]:
    """Generations that each replica was asked for."""
    totals: dict[str, int] = {}
    for replica, number in REQUESTS.findall(http.get("/metrics").text):
        totals[replica] = totals.get(replica, 0) + int(number)
    return totals


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: number - before.get(name, 0) for name, number in after.items() if number != before.get(name, 0)}


def body(model: str = "tiny", **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Tell me {uuid.uuid4()}."}]
    return {"model": f"{P}/{model}", "messages": messages, "max_tokens": 2, "store": False, **more}


def ask(http: httpx.Client, **more: object) -> httpx.Response:
    return http.post("/api/v1/chat/completions", json=body(**more))


def test_a_session_stays_where_its_cache_is(http: httpx.Client) -> None:
    session, messages, before = str(uuid.uuid4()), [{"role": "user", "content": "Begin. " * 8}], counts(http)
    cached = []
    for _ in range(4):
        answer = ask(http, session_id=session, messages=messages).json()
        assert answer["session_id"] == session
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        messages += [answer["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        messages = [{"role": item["role"], "content": item["content"]} for item in messages]
    assert list(grown(before, counts(http)).values()) == [4], "one replica answered all"
    assert cached[1] > 0
    assert cached == sorted(cached)


def test_new_requests_go_where_less_is_done(http: httpx.Client) -> None:
    before = counts(http)
    with http.stream("POST", "/api/v1/chat/completions", json=body(stream=True, n=16, **LONG)):
        assert ask(http).status_code == 200
    assert sorted(grown(before, counts(http)).values()) == [1, 16]


def test_adapters_answer_from_both(http: httpx.Client) -> None:
    before = counts(http)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(http, model="support", max_tokens=60, ignore_eos=True), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(grown(before, counts(http))) == 2


def test_the_death_of_a_worker_costs_nobody_an_answer_who_has_seen_nothing_of_it(
    plane: Plane, sdk: Adaptive, http: httpx.Client
) -> None:
    until(lambda: len(workers(plane)) == 2)
    statuses: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, http, **LONG) for _ in range(24)]
        until(lambda: any(done.done() for done in asked))
        os.kill(next(iter(workers(plane).values())), signal.SIGKILL)
        statuses += [done.result().status_code for done in asked]
        vectors = [http.post("/api/v1/embeddings", json={"model": f"{P}/tiny", "input": "a"}) for _ in range(4)]
    assert set(statuses) == {200}
    assert {answer.status_code for answer in vectors} == {200}
    while len(workers(plane, "support")) < 2:
        assert ask(http, model="support").status_code == 200
        found = sdk.models.get("tiny")
        assert found is not None
        assert found.online == "ONLINE"


def test_a_stream_that_has_begun_ends_with_a_clear_error_and_others_go_on(plane: Plane, http: httpx.Client) -> None:
    until(lambda: len(workers(plane)) == 2)
    with (
        http.stream("POST", "/api/v1/chat/completions", json=body(stream=True, **LONG)) as first,
        http.stream("POST", "/api/v1/chat/completions", json=body(stream=True, **LONG)) as second,
    ):
        streams = [stream.iter_text() for stream in (first, second)]
        texts = [next(stream) for stream in streams]
        os.kill(next(iter(workers(plane).values())), signal.SIGKILL)
        texts = [text + "".join(stream) for text, stream in zip(texts, streams, strict=True)]
    ends = sorted("worker_lost" in text for text in texts)
    assert ends == [False, True]
    assert sum(text.endswith("data: [DONE]\n\n") for text in texts) == 1


@pytest.mark.parametrize("which", ["worker", "device"])
def test_a_process_that_hangs_costs_nobody_an_answer_who_has_seen_nothing_of_it(
    plane: Plane, http: httpx.Client, which: str
) -> None:
    until(lambda: len(workers(plane)) == 2)
    before = workers(plane)
    worker = next(iter(before.values()))
    (device,) = psutil.Process(worker).children()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, http, **LONG) for _ in range(16)]
        until(lambda: any(done.done() for done in asked))
        os.kill(worker if which == "worker" else device.pid, signal.SIGSTOP)
        statuses = [done.result().status_code for done in asked]
    assert set(statuses) == {200}
    until(lambda: len(workers(plane)) == 2 and worker not in workers(plane).values())
    assert workers(plane).keys() == before.keys()
    assert [ask(http).status_code for _ in range(4)] == [200] * 4
