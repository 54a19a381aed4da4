"""Health, metrics, names of requests, limits, and what the log holds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event

from harmonia import log
from harmonia.config.control import ControlConfig
from tests.integration.control.conftest import Plane

ME = {"query": "query Anything { me { email } }"}


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Plane]:
    """Small bodies, and two requests at once of each key."""
    server = {"max_body_bytes": 1000, "max_upload_bytes": 5000, "requests_per_second": 1}
    with Plane(ControlConfig(data_dir=tmp_path, server=server)) as plane:
        yield plane


def ask(plane: Plane, body: object = ME, **headers: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {plane.api_key}", **headers}
    return httpx.post(f"{plane.url}/api/graphql", json=body, headers=headers)


def test_health_needs_no_key(plane: Plane) -> None:
    assert httpx.get(f"{plane.url}/health").json() == {"status": "ready", "database": "ok"}
    assert httpx.get(f"{plane.url}/health/live").status_code == 200


def test_metrics_have_the_names_of_dashboards(plane: Plane) -> None:
    assert ask(plane).status_code == 200
    assert ask(plane, {"query": "{ projects { nothing } }"}).status_code == 200
    text = httpx.get(f"{plane.url}/metrics").text
    labels = 'graphql_operation="me",http_response_status_code="200",http_route="/api/graphql"'
    assert f"concorde_http_server_request_duration_seconds_count{{{labels}}} 1.0" in text
    assert "Anything" not in text  # names that callers make up would have no end
    for name in ("connections_total", "connections_failed_total", "connections_duration_seconds_count"):
        assert f"concorde_db_{name}" in text
    assert "concorde_token_generated_total" in text and "concorde_token_processed_total" in text


@pytest.mark.parametrize("given", ["abc-1", ""])
def test_a_request_keeps_its_name_or_gets_one(plane: Plane, given: str) -> None:
    name = ask(plane, **{"x-request-id": given}).headers["x-request-id"]
    assert name == given if given else len(name) == 32


def test_a_name_that_would_break_the_log_is_not_taken(plane: Plane) -> None:
    assert ask(plane, **{"x-request-id": "x" * 200}).headers["x-request-id"] != "x" * 200
    assert "{" not in ask(plane, **{"x-request-id": '{"level": 1}'}).headers["x-request-id"]


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server wrote; clients in this process write too."""
    return [record.getMessage() for record in caplog.records if record.name.startswith(("harmonia", "strawberry"))]


def test_no_secret_is_logged(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "harmonia")
    ask(plane)
    ask(plane, {"query": '{ nothing(secret: "hunter2") }'})
    httpx.get(f"{plane.url}/api/v1/nowhere?code=hunter2", headers={"authorization": "Bearer hk-hunter2"})
    httpx.get(f"{plane.url}/a%0Ab")
    deadline = time.monotonic() + 10
    while not any(line.startswith("GET /a%0Ab 404 in ") for line in lines_of(caplog)) and time.monotonic() < deadline:
        time.sleep(0.01)  # the line is written when the answer is gone
    lines = lines_of(caplog)
    assert any(line.startswith("POST /api/graphql 200 in ") for line in lines)
    assert any(line.startswith("GET /api/v1/nowhere 404 in ") for line in lines)
    assert any(line.startswith("GET /a%0Ab 404 in ") for line in lines)
    assert plane.api_key not in "\n".join(lines) and "hunter2" not in "\n".join(lines)


def test_json_lines_carry_the_name_of_the_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger("harmonia"), logging.getLogger("uvicorn")]
    for logger in loggers:
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setenv("ADAPTIVE_LOG_FORMAT", "json")
    log.configure("INFO")
    token = log.REQUEST_ID.set("abc")
    try:
        log.get_logger("test").info("one\nline")
    finally:
        log.REQUEST_ID.reset(token)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "INFO", "logger": "harmonia.test", "message": "one\nline", "request_id": "abc"}
    with pytest.raises(ValueError, match="ADAPTIVE_LOG_FORMAT is 'xml'"):
        log.configure(style="xml")


def test_a_full_disk_is_told_and_reading_goes_on(plane: Plane) -> None:
    assert plane.services is not None
    engine = plane.services.database.engine.sync_engine
    event.listen(engine, "checkout", lambda connection, *_: connection.execute("PRAGMA max_page_count=1"))
    query = 'mutation($d: String!) { createProject(input: {name: "large", description: $d}) { id } }'
    told = ask(plane, {"query": query, "variables": {"d": "d" * 500_000}}).json()["errors"][0]
    assert "the database has a full disk" in told["message"] and told["extensions"]["code"] == "unavailable"
    assert ask(plane).json()["data"]["me"]["email"]


@pytest.mark.parametrize("is_declared", [True, False])
@pytest.mark.parametrize(
    ("media_type", "limit"), [("application/json", 1000), ("multipart/form-data; boundary=x", 5000)]
)
def test_a_body_has_a_limit(limited: Plane, is_declared: bool, media_type: str, limit: int) -> None:
    body = b"x" * (limit + 1)
    headers = {"content-type": media_type, "authorization": f"Bearer {limited.api_key}"}
    content = body if is_declared else iter([body])
    answer = httpx.post(f"{limited.url}/api/graphql", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert f"exceeds {limit} bytes" in answer.json()["error"]["message"]


def test_a_key_that_asks_too_often_is_told_when_to_come_back(limited: Plane) -> None:
    answers = [ask(limited) for _ in range(4)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    late = answers[-1]
    assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(late.headers["retry-after"]) >= 1
    assert httpx.get(f"{limited.url}/health").status_code == 200
    assert ask(limited, authorization="Bearer hk-other").status_code == 401
