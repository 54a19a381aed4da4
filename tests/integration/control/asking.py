"""GraphQL by hand: what the published SDK has no method for, or asks for more than a test needs."""

from __future__ import annotations

from typing import Any

import httpx

from tests.integration.control.conftest import Plane


def ask(
    plane: Plane, query: str, variables: dict[str, Any] | None = None, api_key: str | None = None
) -> dict[str, Any]:
    """The whole answer: `data` and `errors`."""
    answer = httpx.post(
        f"{plane.url}/api/graphql",
        json={"query": query, "variables": variables or {}, "operationName": None},
        headers={"Authorization": f"Bearer {api_key or plane.api_key}"},
        timeout=60,
    )
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


def data(
    plane: Plane, query: str, variables: dict[str, Any] | None = None, api_key: str | None = None
) -> dict[str, Any]:
    """What was asked for; an error fails the test."""
    body = ask(plane, query, variables, api_key)
    assert "errors" not in body or not body["errors"], body["errors"]
    found: dict[str, Any] = body["data"]
    return found


def refusal(plane: Plane, query: str, variables: dict[str, Any] | None = None, api_key: str | None = None) -> str:
    """Why it was refused."""
    body = ask(plane, query, variables, api_key)
    assert body.get("errors"), body
    return "; ".join(error["message"] for error in body["errors"])


def make_project(plane: Plane, key: str) -> None:
    """A project of the admin's team."""
    data(plane, 'mutation ($key: Key!) { createProject(input: {name: "Lab", key: $key}) { id } }', {"key": key})


def share_project(plane: Plane, key: str, team: str, role: str) -> None:
    """Let a team in, beside the one that owns it."""
    shares = [{"team": "default", "role": "admin", "isOwner": True}, {"team": team, "role": role, "isOwner": False}]
    query = "mutation ($key: IdOrKey!, $input: ProjectShares!) { shareProject(idOrKey: $key, input: $input) { id } }"
    data(plane, query, {"key": key, "input": {"shares": shares}})
