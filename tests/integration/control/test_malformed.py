"""What nobody sends by accident: the server says what is wrong, quickly, and goes on."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query

from tests.integration.control.conftest import Plane, on_both


def test_malformed_bodies_are_refused(plane: Plane) -> None:
    bodies: list[tuple[bytes, str]] = [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"null", "application/json"),
        (b"7", "application/json"),
        (b'"{ me { id } }"', "application/json"),
        (b"[]", "application/json"),
        (b'[{"query": "{ me { id } }"}]', "application/json"),
        (b'{"query": 7}', "application/json"),
        (b'{"query": ["{ me { id } }"]}', "application/json"),
        (b'{"query": "{ me { id } }", "variables": 7}', "application/json"),
        (b'{"query": "{ me { id } }", "variables": {"a": NaN}}', "application/json"),
        (b'{"query": "{ me { id } }", "operationName": {}}', "application/json"),
        (b'{"query": "{ me { id } }", "variables": {"a": ' + b"9" * 10_000 + b"}}", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"a":' * 100_000, "application/json"),
        (b'{"query": "{ me { id } }\xff"}', "application/json"),
        (b'{"query": "{ me { id } }"}', "text/plain"),
        (b'{"query": "{ me { id } }"}', "application/x-www-form-urlencoded"),
        (b"--b", "multipart/form-data; boundary=b"),
        (b"nothing", "multipart/form-data"),
        (
            b'--b\r\ncontent-disposition: form-data; name="operations"\r\n\r\n{\r\n--b--',
            "multipart/form-data; boundary=b",
        ),
    ]
    headers = {"authorization": f"Bearer {plane.api_key}"}
    with httpx.Client(base_url=plane.url, headers=headers) as client:
        for body, media_type in bodies:
            answer = client.post("/api/graphql", content=body, headers={"content-type": media_type})
            refused = 400 <= answer.status_code < 500 or (answer.status_code == 200 and "errors" in answer.json())
            assert refused, f"{body[:60]!r} as {media_type}: {answer.status_code} {answer.text[:200]}"
            assert "an error of its own" not in answer.text, f"{body[:60]!r} as {media_type}: {answer.text[:200]}"


def ask(client: httpx.Client, query: str, **variables: Any) -> dict[str, Any]:
    # By hand, since `json=` refuses what is to be sent.
    body = json.dumps({"query": query, "variables": variables})
    answer = client.post("/api/graphql", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, f"{query[:100]}: {answer.status_code} {answer.text[:200]}"
    told: dict[str, Any] = answer.json()
    return told


@pytest.fixture
def client(plane: Plane) -> Any:
    with httpx.Client(base_url=plane.url, headers={"authorization": f"Bearer {plane.api_key}"}, timeout=30) as client:
        yield client


def test_dear_operations_are_refused_fast(client: httpx.Client) -> None:
    chain = " ".join(f"fragment f{n} on Team {{ a: id ...f{n + 1} b: id ...f{n + 1} }}" for n in range(60))
    documents = [
        "{ me { teams { team { id } } } " * 300 + "}" * 300,
        "{" * 900,
        "query q($a: " + "[" * 900 + "Int" + "]" * 900 + ") { me { id } }",
        "{ project(idOrKey: " + "[" * 900 + "]" * 900 + ") { id } }",
        "{ " + " ".join(f"a{n}: users {{ id }}" for n in range(100)) + " }",
        "{ " + " me { id } " * 1000 + "}",
        "{ " + " me { id } " * 100 + "}",
        "{ me { " + " id " * 300 + "} }",
        "{ teams { ...f0 } } " + chain + " fragment f60 on Team { id }",
        "{ teams { ...f } } fragment f on Team { ...f }",
        "{ teams { ...missing } }",
        "{ me { id } }" + "#" * 1_000_000 + "\n{ me { id } }",
        "query a { me { id } } query a { me { id } }",
        "{ me { id @skip } }",
        "{ me { id @include(if: 7) } }",
        "subscription { me }",
        "\0",
        "",
    ]
    for document in documents:
        started = time.monotonic()
        told = client.post("/api/graphql", json={"query": document})
        assert time.monotonic() - started < 5.0, document[:100]
        assert told.status_code in (200, 400), f"{document[:100]}: {told.text[:200]}"
        assert told.status_code == 400 or told.json()["errors"], document[:100]
        assert "an error of its own" not in told.text, f"{document[:100]}: {told.text[:200]}"
    assert "errors" not in ask(client, get_introspection_query())


TEXTS = [
    "\0",
    "\ud800",
    "a" * 100_000,
    "'; DROP TABLE users; --",
    "\u202eadmin",
    "ａｄｍｉｎ",
    "аdmin",
    "admin\u200b",
    "admin.",
    "\n",
    "",
]


@on_both
def test_strange_texts_are_refused_or_kept_as_they_are(client: httpx.Client) -> None:
    mutations = {
        "key": 'mutation($t: Key!) { createTeam(input: {name: "x", key: $t}) { key } }',
        "name": "mutation($t: String!) { createTeam(input: {name: $t}) { key name } }",
        "role": "mutation($t: String!) { createRole(input: {name: $t, permissions: []}) { key name } }",
        "permission": 'mutation($t: String!) { createRole(input: {name: "r", permissions: [$t]}) { key } }',
        "project": "mutation($t: String!) { createProject(input: {name: $t}) { key name } }",
        "email": 'mutation($t: String!) { createUser(input: {name: "n", email: $t, teams: []}) { user { email } } }',
        "bot": "mutation($t: String!) { createUser(input: {name: $t, userType: SYSTEM, teams: []}) { user { id } } }",
        "user": "mutation($t: IdOrKey!) { deleteUser(user: $t) { id } }",
        "owner": "mutation($t: IdOrKey!) { createApiKey(input: {user: $t}) { key } }",
        "end": "query($t: InputDatetime!) { auditLog(filter: {from: $t}) { totalCount } }",
        "found": "query($t: IdOrKey!) { project(idOrKey: $t) { id } }",
        "audit": "query($t: String!) { auditLog(filter: {entity: $t}) { totalCount } }",
        "cursor": "query($t: String!) { auditLog(page: {after: $t}) { totalCount } }",
        "actor": "query($t: IdOrKey!) { auditLog(filter: {user: $t}) { totalCount } }",
    }
    for what, mutation in mutations.items():
        for text in TEXTS:
            told = ask(client, mutation, t=text)
            assert "an error of its own" not in str(told), f"{what} {text[:20]!r}: {told}"
    keys = {team["key"] for team in ask(client, "{ teams { key } }")["data"]["teams"]}
    assert keys >= {"admin", "default"}
    assert all(key.isascii() and key == key.strip() for key in keys)
    assert ask(client, '{ project(idOrKey: "a\\u0000b") { id } }')["errors"]


def test_a_key_cannot_pass_for_the_id_of_another(client: httpx.Client) -> None:
    make = 'mutation($k: Key) { createTeam(input: {name: "x", key: $k}) { id } }'
    team = ask(client, make, k="one")["data"]["createTeam"]["id"]
    for key in (team, team.replace("-", ""), team.upper()):
        assert "would pass for an id" in ask(client, make, k=key)["errors"][0]["message"]
    named = "mutation($n: String!) { createTeam(input: {name: $n}) { id } }"
    assert "would pass for an id" in ask(client, named, n=team)["errors"][0]["message"]


@on_both
def test_numbers_beyond_their_range_are_refused(client: httpx.Client) -> None:
    for name in ("first", "last", "offset"):
        for value in (-1, 2**31, 2**63, 1e300, -(2**70)):
            told = ask(client, f"query($n: Int!) {{ auditLog(page: {{{name}: $n}}) {{ totalCount }} }}", n=value)
            assert told.get("errors"), (name, value)
            assert "an error of its own" not in str(told), (name, value)
    for value in (2**63, -(2**70), 10**400):
        told = ask(client, "query($n: InputDatetime!) { auditLog(filter: {from: $n}) { totalCount } }", n=value)
        assert "an error of its own" not in str(told), value


def test_rest_says_what_is_wrong(client: httpx.Client) -> None:
    for path in (
        "/api/v1/auth/login/%00",
        "/api/v1/auth/login/a%0d%0ab",
        "/api/v1/auth/login/..%2f..",
        "/api/v1/auth/x",
    ):
        assert client.get(path).status_code == 404, path
    assert client.get("/api/v1/auth/logout").status_code == 405
    for key in (b"Bearer \xff\xfe", b"Bearer", b"Basic eDp5", b"Bearer " + b"a" * 10_000):
        answer = httpx.get(f"{client.base_url}/api/v1/auth/me", headers=[(b"authorization", key)])
        assert answer.status_code == 401, key[:20]
