"""Servers under bad input, bad clients and bad luck."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.conftest import Server, StartServer

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}]}
LONG = {**CHAT, "max_tokens": 400, "ignore_eos": True, "stream": True}


def metric(http: httpx.Client, name: str) -> float:
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(lines[0].rsplit(" ", 1)[1])


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_too_long_prompt_is_refused_before_it_takes_a_block(server: Server) -> None:
    with server.client() as http:
        response = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 600})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert "600" in response.text


def test_schema_that_cannot_be_compiled_is_the_callers_fault(server: Server) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    with server.client() as http:
        response = http.post("/v1/chat/completions", json={**CHAT, "response_format": wanted})
    assert response.status_code == 400, response.text


def test_departed_clients_free_the_engine(server: Server) -> None:
    with server.client() as http:
        for _ in range(4):
            with http.stream("POST", "/v1/chat/completions", json=LONG) as response:
                next(response.iter_lines())
        wait_until(lambda: metric(http, "harmonia_running{") + metric(http, "harmonia_queue_length{") == 0)


def test_idle_connections_do_not_disturb(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(500)]
    try:
        with server.client() as http:
            assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3}).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_late_first_token_is_408_and_counted(server: Server) -> None:
    with server.client() as http:
        before = metric(http, 'harmony_ttft_timeout_count{model="tiny"')
        response = http.post("/v1/chat/completions", json={**CHAT, "max_ttft_ms": 0, "max_tokens": 400})
        assert response.status_code == 408, response.text
        assert "max_ttft_ms" in response.json()["error"]["message"]
        assert metric(http, 'harmony_ttft_timeout_count{model="tiny"') == before + 1


def test_idle_server_uses_almost_nothing(server: Server) -> None:
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]

    def used() -> float:
        return sum(process.cpu_times().user + process.cpu_times().system for process in processes)

    time.sleep(0.5)
    before = used()
    time.sleep(3)
    assert used() - before <= 0.06


def test_dead_worker_is_replaced_and_its_requests_are_told(start: StartServer, tiny: Path) -> None:
    with start(tiny) as server, server.client() as http:
        worker = next(child for child in psutil.Process(server.process.pid).children())
        with http.stream("POST", "/v1/chat/completions", json=LONG) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(worker.pid, signal.SIGKILL)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_lost"
        wait_until(lambda: http.get("/health").status_code == 200, 60)
        assert http.get("/health").json()["workers"][0]["restarts"] == 1
        assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3}).status_code == 200


def test_shutdown_lets_streams_finish_and_leaves_nothing_behind(start: StartServer, tiny: Path) -> None:
    with start(tiny) as server, server.client() as http:
        family = psutil.Process(server.process.pid).children(recursive=True)
        with http.stream("POST", "/v1/chat/completions", json=LONG) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
        assert psutil.wait_procs(family, 10)[1] == []


def test_second_signal_ends_at_once(start: StartServer, tiny: Path) -> None:
    with start(tiny) as server, server.client() as http:
        ended = threading.Event()

        def consume() -> None:
            with http.stream("POST", "/v1/chat/completions", json={**LONG, "n": 8}) as response:
                for _ in response.iter_lines():
                    pass
            ended.set()

        reader = threading.Thread(target=consume)
        reader.start()
        wait_until(lambda: metric(http, "harmonia_running{") > 0)
        server.process.send_signal(signal.SIGINT)
        assert server.wait_line("SIGINT: finishing open requests")  # else the system may make one signal of two
        server.process.send_signal(signal.SIGINT)
        server.process.wait(15)
        reader.join(10)
        assert ended.is_set()


def test_full_queue_is_429_with_retry_after(start: StartServer, tiny: Path) -> None:
    with start(tiny, "--kv-cache-len", "512") as server, server.client() as http:
        body = {"model": "tiny", "prompt": ["x" * 100] * 2048, "n": 2, "max_tokens": 300, "ignore_eos": True}
        started = threading.Thread(target=lambda: _ignore(http, body))
        started.start()
        wait_until(lambda: metric(http, "harmonia_queue_length{") > 3000)
        with server.client() as other:
            response = other.post("/v1/completions", json=body)
        assert response.status_code == 429, response.text
        assert int(response.headers["retry-after"]) >= 1
        server.process.kill()
        started.join()


def _ignore(http: httpx.Client, body: dict) -> None:
    try:
        http.post("/v1/completions", json=body)
    except httpx.HTTPError:
        return


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--kv-cache-len", "2000000000"), "It does not fit"),
        (("--adapter", "a=/nowhere"), "/nowhere"),
    ],
)
def test_refusal_to_load_is_explained(start: StartServer, tiny: Path, options: tuple[str, ...], says: str) -> None:
    with start(tiny, *options, ready=False) as server:
        assert server.wait_line(r"on http://") is None
        assert server.process.wait(10) == 1
        assert says in server.output


def test_taken_port_is_explained(start: StartServer, tiny: Path, server: Server) -> None:
    port = server.url.rsplit(":", 1)[1]
    with start(tiny, "--port", port, ready=False) as second:
        assert second.process.wait(20) == 1
        second.wait_line("cannot listen")
        assert port in second.output
