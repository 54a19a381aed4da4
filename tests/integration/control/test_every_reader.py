"""Every query and every REST endpoint, asked with each role by people inside and outside of a project: whoever may not
see something gets nothing of it, and whoever may gets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from harmonia.server.graphql.schema import make_schema
from tests.integration.control.laboratory import (
    ANYWHERE,
    PROJECT,
    RECIPE,
    RESERVED,
    TEAM,
    Laboratory,
    P,
    furnished,
    may,
)


@dataclass(frozen=True)
class Look:
    """One query."""

    text: str
    """What is asked for, with the names of things in the laboratory after `$`."""
    permission: str | None
    """None: everybody may ask."""
    where: str = PROJECT


_FILTER = f'filter: {{project: "{P}"}}'
_ALL = f'{{fromFilters: {{filters: {{project: "{P}"}}}}}}'
_DONE = "{ totalCount }"
_USE = "(filter: {interval: DAY}) { interactions }"
LOOKS: dict[str, Look] = {
    "abCampaigns": Look(f"({_FILTER}) {{ id }}", "project:read"),
    "abCampaign": Look('(idOrKey: "running") { id }', "project:read"),
    "completions": Look(f"({_FILTER}, page: {{}}) {{ nodes {{ id }} }}", "interaction:read"),
    "completionsGrouped": Look(f"({_FILTER}, page: {{}}, groupBy: MODEL) {{ nodes {{ count }} }}", "interaction:read"),
    "completion": Look(f'(project: "{P}", id: "$completion") {{ id }}', "interaction:read"),
    "modelUsage": Look('(filter: {unit: DAY, modelId: "$model"}) { interactions }', "interaction:read"),
    "modelUsageByProject": Look(_USE, "interaction:read"),
    "modelUsageByUser": Look(_USE, "interaction:read"),
    "modelUsageDetailsByProject": Look(_USE, "interaction:read"),
    "metrics": Look("{ id }", "metric:read"),
    "metric": Look(f'(projectIdOrKey: "{P}", metricIdOrKey: "quality") {{ id }}', "metric:read"),
    "users": Look("{ id }", "team:read", ANYWHERE),
    "teams": Look("{ id }", "team:read", ANYWHERE),
    "roles": Look("{ id }", "team:read", ANYWHERE),
    "auditLog": Look(_DONE, "admin:read_audit", RESERVED),
    "projects": Look("{ id }", "project:read"),
    "project": Look(f'(idOrKey: "{P}") {{ id }}', "project:read"),
    "monitoringRuns": Look(f'(project: "{P}", limit: 9, offset: 0) {{ id }}', "project:read"),
    "monitoringRun": Look(f'(project: "{P}", runId: "$run") {{ id }}', "project:read"),
    "monitoringTables": Look(f'(project: "{P}", runIds: ["$run"]) {{ id }}', "project:read"),
    "monitoringCategorical": Look(f'(project: "{P}", runIds: ["$run"]) {{ id }}', "project:read"),
    "customRecipes": Look(f'(project: "{P}") {{ id }}', "project:read"),
    "customRecipe": Look(f'(project: "{P}", idOrKey: "lesson") {{ id }}', "project:read"),
    "parseRecipeSchema": Look(f"(recipeContent: {json.dumps(RECIPE)})", "project:adapt", ANYWHERE),
    "artifacts": Look(f'(project: "{P}") {{ id }}', "project:read"),
    "artifact": Look(f'(project: "{P}", id: "$checkpoint") {{ id }}', "project:read"),
    "searchProject": Look(f'(project: "{P}", input: {{query: "o"}}) {{ jobs {{ id }} }}', "project:read"),
    "systemPromptTemplates": Look(f'(project: "{P}") {{ id }}', "project:read"),
    "jobs": Look(f"(page: {{}}, {_FILTER}) {{ nodes {{ id }} }}", "project:read"),
    "job": Look('(id: "$job") { id }', "project:read"),
    "models": Look("{ id }", "model:read", ANYWHERE),
    "model": Look('(idOrKey: "one") { id }', "model:read", ANYWHERE),
    "computePools": Look("{ id }", "compute:read", ANYWHERE),
    "harmonyGroups": Look("{ id }", "compute:read", ANYWHERE),
    "allHarmonyGroups": Look("{ id }", "compute:read", ANYWHERE),
    "previewDatasetFromFilters": Look(
        f'(input: {{project: "{P}", name: "x", kind: PROMPT, completionQuery: {_ALL}}})', "interaction:read"
    ),
    "completionDownloadUrl": Look(f'(project: "{P}", selection: {_ALL})', "interaction:read"),
    "completionAsDatasetDownloadUrl": Look(f'(project: "{P}", selection: {_ALL})', "interaction:read"),
    "datasets": Look(f'(project: "{P}") {{ id }}', "dataset:read"),
    "dataset": Look(f'(project: "{P}", idOrKey: "rows") {{ id }}', "dataset:read"),
    "graders": Look(f'(project: "{P}") {{ id }}', "metric:read"),
    "grader": Look(f'(project: "{P}", id: "strict") {{ id }}', "metric:read"),
    "remoteEnvs": Look("{ id }", "metric:read", ANYWHERE),
    "integrations": Look('(team: "default") { id }', "team:read", TEAM),
    "integration": Look('(id: "$integration") { id }', "team:read", TEAM),
    "notificationSystemStatus": Look("", "team:manage_integrations", ANYWHERE),
}
"""By name."""
OPEN = {"me", "meta", "permissions", "prebuiltConfigs", "prebuiltCriteria", "providers", "provider"}
"""What everybody with a key may ask."""
ELSEWHERE = {
    "apiKeys": "one's own",
    "datasetUploadProcessingStatus": "needs an upload of one's own",
    "globalUsage": "adds up what the caller may see",
    "interactionOptions": "what is found depends on interactions",
    "jobOptions": "names what the caller may see",
    "usageOptions": "names what the caller may see",
}
"""What has tests of its own, with why."""
_MESSAGES = [{"role": "user", "content": "a"}]
_OF_MODEL = {"model": f"{P}/off"}
ENDPOINTS: dict[tuple[str, str], tuple[str, dict[str, Any] | None]] = {
    ("POST", "/api/v1/chat/completions"): ("project:infer", {**_OF_MODEL, "messages": _MESSAGES}),
    ("POST", "/api/v1/completions"): ("project:infer", {**_OF_MODEL, "prompt": "a"}),
    ("POST", "/api/v1/embeddings"): ("project:infer", {**_OF_MODEL, "input": "a"}),
    ("POST", "/v1/chat/completions"): ("project:infer", {**_OF_MODEL, "messages": _MESSAGES}),
    ("POST", "/api/v1/interactions"): (
        "interaction:create",
        {"project": P, "messages": _MESSAGES, "completion": "b"},
    ),
    ("POST", "/api/v1/feedback"): ("metric:log", {"completion_id": "$completion", "metric": "quality", "value": 1}),
    ("POST", "/api/v1/comparison"): (
        "metric:log",
        {
            "project": P,
            "metric": "quality",
            "messages": _MESSAGES,
            "preferred_completion": {"text": "b", "model": "one"},
            "other_completion": {"text": "c", "model": "two"},
        },
    ),
    ("POST", "/api/v1/outcome"): (
        "metric:log",
        {"project": P, "session_id": "$session", "metric": "quality", "value": 1},
    ),
    ("POST", f"/api/v1/monitoring/projects/{P}/monitoring_runs"): (
        "project:adapt",
        {"name": "first", "config": {}, "resume": True},
    ),
    ("POST", "/api/v1/monitoring/monitoring_runs/$run/metrics"): (
        "project:adapt",
        {"metrics": [{"name": "loss", "value": 1.0, "step": 1, "timestamp": "2026-01-01T00:00:00Z"}]},
    ),
    ("POST", "/api/v1/monitoring/monitoring_runs/$run/tables"): (
        "project:adapt",
        {"name": "t", "step": 0, "columns": [{"name": "a"}], "data": [[1]], "append": False},
    ),
    ("POST", "/api/v1/monitoring/monitoring_runs/$run/categorical"): (
        "project:adapt",
        {"name": "c", "step": 0, "labels": ["a"], "values": [1.0], "series": []},
    ),
    ("PATCH", "/api/v1/monitoring/monitoring_runs/$run"): ("project:adapt", {"status": "finished"}),
    ("GET", "/api/v1/monitoring/monitoring_runs/$run/metrics"): ("project:read", None),
    ("GET", f"/api/v1/projects/{P}/datasets/rows/download"): ("dataset:read", None),
    ("GET", f"/api/v1/projects/{P}/recipes/lesson/download"): ("project:read", None),
    ("GET", "/api/v1/jobs/$job/logs"): ("project:read", None),
}
UNAVAILABLE = 503
"""What a model that is switched off answers to whoever may ask it."""
MAY_BE_EMPTY = ("harmonyGroups", "allHarmonyGroups", "remoteEnvs", "monitoringTables", "monitoringCategorical")
"""Lists of which the laboratory has none."""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with furnished(tmp_path_factory.mktemp("plane")) as built:
        yield built


def filled(laboratory: Laboratory, text: str) -> str:
    for name in sorted(laboratory.things, key=len, reverse=True):
        text = text.replace(f"${name}", laboratory.things[name])
    return text


def test_every_query_has_its_permission_here() -> None:
    queries = make_schema()._schema.query_type.fields  # type: ignore[union-attr]
    assert set(queries) - OPEN - set(ELSEWHERE) == set(LOOKS)


@pytest.mark.parametrize("name", LOOKS)
def test_only_who_may_sees(laboratory: Laboratory, name: str) -> None:
    look, wrong = LOOKS[name], {}
    query = filled(laboratory, f"{{ {name}{look.text} }}")
    for (team, role), key in laboratory.people.items():
        answer = laboratory.http.post(
            "/api/graphql", json={"query": query}, headers={"authorization": f"Bearer {key}"}
        ).json()
        codes = [(error.get("extensions") or {}).get("code") for error in answer.get("errors") or ()]
        assert set(codes) <= {"permission_denied"}, answer
        seen = (answer["data"] or {}).get(name)
        is_empty = seen in (None, [], {"nodes": []})
        if codes or is_empty:
            if may(look.permission, look.where, team, role) and (codes or name not in MAY_BE_EMPTY):
                wrong[team, role] = "sees nothing"
        elif not may(look.permission, look.where, team, role):
            wrong[team, role] = f"sees {seen}"
    assert not wrong


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=" ".join)
def test_only_who_may_gets_through(laboratory: Laboratory, endpoint: tuple[str, str]) -> None:
    (method, path), (permission, body) = endpoint, ENDPOINTS[endpoint]
    content = None if body is None else filled(laboratory, json.dumps(body))
    wrong = {}
    for (team, role), key in laboratory.people.items():
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        answer = laboratory.http.request(method, filled(laboratory, path), content=content, headers=headers)
        is_through = answer.status_code < 300 or answer.status_code == UNAVAILABLE
        assert is_through or answer.status_code in (403, 404), answer.text
        if is_through != may(permission, PROJECT, team, role):
            wrong[team, role] = answer.status_code
    assert not wrong


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=" ".join)
def test_nobody_gets_through_without_a_key(laboratory: Laboratory, endpoint: tuple[str, str]) -> None:
    (method, path), (_, body) = endpoint, ENDPOINTS[endpoint]
    content = None if body is None else filled(laboratory, json.dumps(body))
    for headers in ({}, {"authorization": "Bearer hk-wrong"}, {"authorization": "Basic YTpi"}):
        given = {**headers, "content-type": "application/json"}
        answer = laboratory.http.request(method, filled(laboratory, path), content=content, headers=given)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
