"""Bad input and bad days: each gets a status, a type, and a message that names the value."""

import asyncio
import json

import httpx
import pytest

from harmonia.config.server import HttpServer, ServerConfig
from harmonia.protocol.fleet import WorkerState
from harmonia.protocol.messages import Cancel, Failed
from harmonia.server.connection import MAX_HEAD_BYTES
from tests.unit.server.conftest import Serve, Served
from tests.unit.server.scripted import Script

CHAT = '{"model": "tiny", "messages": [{"role": "user", "content": "hi"}]'


def error(response: httpx.Response) -> dict:
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"\xff"', None),
        (b'{"model": "t\xff"}', None),
        (b'{"model": "\\ud800", "messages": []}', None),
        (b"{}", "model"),
        (b'{"model": 3}', "model"),
        (b'{"model": "tiny", "messages": []}', "messages"),
        (b'{"model": "tiny", "messages": [{"role": "boss", "content": ""}]}', "messages[0].role"),
        (b'{"model": "tiny", "messages": [{"role": "user"}]}', "messages[0].content"),
        ((CHAT + ', "temperature": 1e400}').encode(), "temperature"),
        ((CHAT + ', "temperature": NaN}').encode(), None),
        ((CHAT + ', "temperature": -1}').encode(), "temperature"),
        ((CHAT + ', "seed": 99999999999999999999999}').encode(), "seed"),
        ((CHAT + ', "max_tokens": -5}').encode(), "max_tokens"),
        ((CHAT + ', "max_tokens": 0}').encode(), "max_tokens"),
        ((CHAT + ', "n": 0}').encode(), "n"),
        ((CHAT + ', "n": true}').encode(), "n"),
        ((CHAT + ', "stop": [""]}').encode(), "stop"),
        ((CHAT + ', "stop": [3]}').encode(), "stop[0]"),
        ((CHAT + ', "logit_bias": {"x": 1}}').encode(), "logit_bias"),
        ((CHAT + ', "logit_bias": {"1000": 1}}').encode(), "logit_bias"),
        ((CHAT + ', "top_logprobs": 3}').encode(), "top_logprobs"),
        ((CHAT + ', "tool_choice": "required"}').encode(), "tool_choice"),
        ((CHAT + ', "stream_options": {"usage": 1}}').encode(), "stream_options.usage"),
        ((CHAT + ', "chat_template_kwargs": {"a": 99999999999999999999}}').encode(), None),
        ((CHAT + ', "metadata": ' + "[" * 100_000 + "]" * 100_000 + "}").encode(), None),
    ],
)
async def test_bad_chat_requests_name_the_field(served: Served, body: bytes, param: str | None) -> None:
    headers = {"content-type": "application/json"}
    response = await served.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert error(response)["param"] == param


async def test_unknown_field_suggests_the_closest(served: Served) -> None:
    message = error(await served.chat(temprature=1))["message"]
    assert "temprature" in message
    assert "'temperature'" in message


async def test_deep_schema_is_refused_and_a_flat_one_with_many_brackets_is_not(served: Served) -> None:
    deep: dict = {"type": "object"}
    for _ in range(70):
        deep = {"type": "object", "properties": {"a": deep}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}
    assert "nested deeper" in error(await served.chat(response_format=schema))["message"]
    messages = [{"role": "user", "content": '"[[[[{{{{\\'}] * 100
    assert (await served.chat(messages=messages)).status_code == 200


async def test_images_are_refused_by_place(served: Served) -> None:
    parts = [{"type": "image_url", "image_url": "data:,"}]
    response = await served.chat(messages=[{"role": "user", "content": parts}])
    assert error(response)["param"] == "messages[0].content[0].type"


async def test_unknown_model_is_404_and_lists_what_there_is(served: Served) -> None:
    response = await served.chat(model="huge")
    assert response.status_code == 404
    assert error(response)["code"] == "model_not_found"
    assert "tiny" in error(response)["message"]
    assert (await served.http.get("/v1/models/huge")).status_code == 404


async def test_unknown_path_and_method_have_the_same_shape(served: Served) -> None:
    assert error(await served.http.get("/v2/x"))["code"] == "not_found"
    response = await served.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("code", "details", "status", "header"),
    [
        ("deadline_exceeded", {"limit": "max_ttft_ms"}, 408, ("x-should-retry", "false")),
        ("overloaded", {"retry_after_s": 7.0}, 429, ("retry-after", "7")),
        ("sequence_too_long", {"field": "messages"}, 400, None),
        ("worker_lost", {}, 503, ("retry-after", "1")),
        ("surprise", {}, 500, None),
    ],
)
async def test_worker_errors_have_a_status_even_when_streaming(
    served: Served, code: str, details: dict, status: int, header: tuple[str, str] | None
) -> None:
    served.worker.script = Script(failure=Failed(id="", code=code, message="no", details=details))
    response = await served.chat(stream=True)
    assert response.status_code == status
    assert error(response)["message"].startswith("no")
    assert header is None or response.headers[header[0]] == header[1]
    assert code != "deadline_exceeded" or "ADAPTIVE_MAX_TTFT_MS" in error(response)["message"]


async def test_first_byte_timeout_names_its_variable_and_cancels(serve: Serve) -> None:
    async with serve(ServerConfig(server=HttpServer(timeout_seconds=0.2))) as served:
        served.worker.script = Script(hang_after=0)
        response = await served.chat()
        assert response.status_code == 408
        assert "ADAPTIVE_SERVER__TIMEOUT_SECONDS" in error(response)["message"]
        await served.worker.until(Cancel)


async def test_running_stream_outlives_the_timeout(serve: Serve) -> None:
    async with serve(ServerConfig(server=HttpServer(timeout_seconds=0.2, shutdown_grace_seconds=0.1))) as served:
        served.worker.script = Script(hang_after=1)
        body = {**json.loads(CHAT + "}"), "stream": True}
        async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            assert "Paris" in await anext(lines)
            await asyncio.sleep(0.4)
            assert not served.worker.of(Cancel)
            served.listener.handle_exit(15, None)
            rest = [line async for line in lines if line]
        assert "shutting down" in json.loads(rest[-1].removeprefix("data: "))["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_departed_client_cancels_its_work(served: Served, stream: bool) -> None:
    served.worker.script = Script(hang_after=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    body = (CHAT + (', "stream": true}' if stream else "}")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    if stream:
        await reader.readuntil(b"Paris")
    else:
        await asyncio.sleep(0.1)
    writer.close()
    await served.worker.until(Cancel)


async def test_large_body_is_413(serve: Serve) -> None:
    async with serve(ServerConfig(server=HttpServer(max_body_bytes=1000))) as served:
        response = await served.chat(user="x" * 2000)
        assert response.status_code == 413
        assert error(response)["code"] == "body_too_large"


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_what_any_web_page_may_send_is_415(served: Served, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type else {}
    response = await served.http.post("/v1/chat/completions", content=CHAT + "}", headers=headers)
    assert response.status_code == 415
    assert "application/json" in error(response)["message"]
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await served.http.post("/v1/chat/completions", content=CHAT + "}", headers=headers)).status_code == 200


async def test_endless_headers_are_431(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = b"GET /health HTTP/1.1\r\nx: "
    writer.write(head + b"a" * (MAX_HEAD_BYTES + 1 - len(head)))
    answer = await asyncio.wait_for(reader.read(), 2)
    assert answer.startswith(b"HTTP/1.1 431")
    writer.close()


async def test_loading_is_503_with_a_time_to_come_back(serve: Serve) -> None:
    async with serve(ready=False) as served:
        health = await served.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        response = await served.chat()
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        served.fleet.set("r1", WorkerState.FAILED)
        assert (await served.http.get("/health")).json()["status"] == "failed"


async def test_idle_connections_are_closed_and_nobody_notices(serve: Serve) -> None:
    async with serve(ServerConfig(server=HttpServer(header_timeout_seconds=0.3))) as served:
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(300)]
        idle[0][1].write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-le")
        assert (await served.chat()).status_code == 200
        async with asyncio.timeout(5):
            ends = await asyncio.gather(*(reader.read() for reader, _ in idle))
        assert set(ends) == {b""}
        for _, writer in idle:
            writer.close()


async def test_connections_above_the_limit_are_told_so(serve: Serve) -> None:
    async with serve(ServerConfig(server=HttpServer(max_connections=2))) as served:
        held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(3)]
        answers = [await asyncio.wait_for(reader.read(200), 2) for reader, _ in held[1:]]
        assert any(answer.startswith(b"HTTP/1.1 503") for answer in answers)
        for _, writer in held:
            writer.close()
