"""Users, teams, roles and projects through the published SDK."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError, GraphQLClientHttpError

from tests.integration.control.conftest import ADMIN, Plane, on_both

pytestmark = on_both


def test_the_admin_is_there_with_all_roles(adaptive: Adaptive) -> None:
    me = adaptive.users.me()
    assert me is not None
    assert me.email == ADMIN
    assert {team.team.key for team in me.teams} == {"admin", "default"}
    assert {role.key for role in adaptive.roles.list()} >= {"admin", "read-only", "inference", "annotator"}
    assert "project:infer" in adaptive.permissions.list()


def test_a_wrong_key_is_refused(adaptive_as: Callable[[str], Adaptive]) -> None:
    with pytest.raises(GraphQLClientHttpError, match="401"):
        adaptive_as("wrong").users.me()


def test_projects_are_seen_by_the_teams_they_are_shared_with(
    adaptive: Adaptive, adaptive_as: Callable[[str], Adaptive]
) -> None:
    adaptive.teams.create("support", "Support")
    account = adaptive.users.create_service_account(name="bot", teams_with_role=[("support", "read-only")])
    bot = adaptive_as(account.api_key)
    adaptive.projects.create("tickets", "Tickets")
    assert bot.projects.list() == []
    shared = adaptive.projects.share("tickets", "support", "read-only")
    assert {item.team.key for item in shared.shares} == {"default", "support"}
    assert [project.key for project in bot.projects.list()] == ["tickets"]
    assert "project:update" not in bot.projects.get("tickets").permissions
    with pytest.raises(GraphQLClientGraphQLMultiError, match="admin:manage_teams"):
        bot.teams.create("own", "Own")


def test_a_deleted_account_is_refused_at_once(adaptive: Adaptive, adaptive_as: Callable[[str], Adaptive]) -> None:
    account = adaptive.users.create_service_account(name="bot", teams_with_role=[("default", "inference")])
    bot = adaptive_as(account.api_key)
    assert bot.users.me() is not None
    adaptive.users.delete("bot@system.adaptive.local")
    with pytest.raises(GraphQLClientHttpError, match="401"):
        bot.users.me()


def test_what_is_not_there_is_null_and_mistakes_are_told(plane: Plane, adaptive: Adaptive) -> None:
    assert adaptive.projects.get("nowhere") is None
    answer = httpx.post(
        f"{plane.url}/api/graphql",
        json={"query": 'mutation { createTeam(input: {name: "!!"}) { id } }', "operationName": None, "variables": {}},
        headers={"Authorization": f"Bearer {plane.api_key}"},
    )
    assert answer.status_code == 200
    assert "no key can be made of" in answer.json()["errors"][0]["message"]
