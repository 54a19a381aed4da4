"""Requests drawn from the OpenAPI document, right and wrong: never a server error, never an undocumented answer."""

import gc
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from harmonia.config.server import ServerConfig
from harmonia.router import Router
from harmonia.server import create_app
from tests.integration.conftest import Server
from tests.unit.server.scripted import StillFleet

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
PATHS = create_app(ServerConfig(), Router(StillFleet())).openapi()["paths"]
# /api/v1 has the same routes.
OPERATIONS = [(method, path) for path in PATHS for method in PATHS[path] if not path.startswith("/api/")]


@pytest.fixture(scope="module")
def document(server: Server) -> Iterator[schemathesis.BaseSchema]:
    # Finalizers of what earlier tests left would run in the middle of `ast.parse`, which CPython 3.11 forbids.
    gc.collect()
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_right_requests_never_break_it(document: schemathesis.BaseSchema, method: str, path: str) -> None:
    @BOUNDED
    @given(case=document[path][method.upper()].as_strategy(generation_mode=GenerationMode.POSITIVE), real=st.booleans())
    def check(case: schemathesis.Case, real: bool) -> None:
        if real and isinstance(case.body, dict):
            _make_answerable(case.body)
        case.call_and_validate(checks=CHECKS, timeout=30)

    check()


@pytest.mark.parametrize(("method", "path"), [pair for pair in OPERATIONS if pair[0] == "post"])
def test_wrong_requests_are_refused(document: schemathesis.BaseSchema, method: str, path: str) -> None:
    @BOUNDED
    @given(case=document[path][method.upper()].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=[*CHECKS, negative_data_rejection], timeout=30)

    check()


def _make_answerable(body: dict) -> None:
    """Put in what no random draw hits: the name of a model, and messages that every role may say."""
    if "model" in body:
        body["model"] = "tiny"
    for message in body.get("messages", ()):
        message["content"] = str(message.get("content"))
    for field, wanted in (("tools", None), ("tool_choice", None), ("top_logprobs", None), ("system_prompt_args", {})):
        if field in body:
            body[field] = wanted


def test_server_is_well_afterwards(server: Server) -> None:
    with server.client() as http:
        assert http.get("/health").json()["status"] == "ready"
        body = {"model": "tiny", "prompt": "still there?", "max_tokens": 2}
        assert http.post("/v1/completions", json=body).status_code == httpx.codes.OK
