"""Every mutation, tried with each role by members of the project's team, by members of the reserved team, and by people
from elsewhere: what their permissions do not hold is refused, and nothing else is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.integration.control.laboratory import (
    ANYWHERE,
    GRADER,
    MUTATIONS,
    RECIPE,
    RESERVED,
    TEAM,
    WEBHOOK,
    Attempt,
    Laboratory,
    P,
    furnished,
    may,
)

_ID, _NOTHING = "{ id }", ""
_NEW_METRIC = {"name": "stars", "kind": "SCALAR"}
_EVERY_COMPLETION = {"fromFilters": {"filters": {"project": P}}}
_UNREACHABLE = {"url": "http://127.0.0.1:9"}

# What destroys comes after what needs it.
ATTEMPTS: dict[str, Attempt] = {
    "createMetric": Attempt(_ID, "metric:create", variables={"project": P, "input": _NEW_METRIC}),
    "updateMetric": Attempt(
        _ID, "metric:create", variables={"project": P, "metric": "quality", "input": {"description": "d"}}
    ),
    "deleteMetric": Attempt(_NOTHING, "metric:create", variables={"project": P, "metric": "stars"}),
    "addDirectScore": Attempt(
        _ID, "metric:log", variables={"completionId": "$completion", "metricId": "quality", "input": {"value": 1}}
    ),
    "createAbCampaign": Attempt(
        _ID,
        "project:update",
        variables={
            "input": {
                "key": "test",
                "metric": "quality",
                "project": P,
                "modelServices": ["one", "two"],
                "autoDeploy": False,
                "trafficSplit": 0.5,
            }
        },
    ),
    "cancelAbCampaign": Attempt(_NOTHING, "project:update", variables={"input": "running"}),
    "createUser": Attempt(
        "{ user { id } }",
        "admin:manage_users",
        ANYWHERE,
        {"input": {"name": "n", "email": "n@example.com", "teams": []}},
    ),
    "setTeamMember": Attempt(
        "{ user { id } }",
        "team:manage_members",
        TEAM,
        {"input": {"user": "$victim", "team": "default", "role": "empty"}},
    ),
    "removeTeamMember": Attempt(_ID, "team:manage_members", TEAM, {"input": {"user": "$leaver", "team": "default"}}),
    "updateUser": Attempt(
        _ID,
        "team:manage_members",
        TEAM,
        {"user": "$victim", "input": {"addTeams": [{"team": "default", "role": "empty"}]}},
    ),
    "deleteUser": Attempt(_ID, "admin:manage_users", TEAM, {"user": "$victim"}),
    "reactivateUser": Attempt(_ID, "admin:manage_users", RESERVED, {"user": "$victim"}),
    "createTeam": Attempt(_ID, "admin:manage_teams", RESERVED, {"input": {"name": "more"}}),
    "createRole": Attempt(_ID, "admin:manage_roles", RESERVED, {"input": {"name": "less", "permissions": []}}),
    "updateRole": Attempt(_ID, "admin:manage_roles", RESERVED, {"input": {"role": "empty", "name": "Empty"}}),
    "createApiKey": Attempt("{ createdAt }", "admin:manage_users", RESERVED, {"input": {"user": "$robot"}}),
    "createProject": Attempt(_ID, "project:create", TEAM, {"input": {"name": "Mine", "team": "default"}}),
    "updateProject": Attempt(_ID, "project:update", variables={"idOrKey": P, "input": {"description": "d"}}),
    "shareProject": Attempt(
        _ID,
        "project:share",
        variables={
            "idOrKey": P,
            "input": {"shares": [{"team": "default", "role": "admin", "isOwner": True}]},
        },
    ),
    "createMonitoringRun": Attempt(_ID, "project:adapt", variables={"project": P, "input": {"name": "run"}}),
    "updateMonitoringRun": Attempt(
        _ID, "project:adapt", variables={"project": P, "runId": "$run", "input": {"status": "FINISHED"}}
    ),
    "logMonitoringTable": Attempt(
        _ID,
        "project:adapt",
        variables={"project": P, "runId": "$run", "input": {"name": "t", "columns": [{"name": "a"}], "data": [[1]]}},
    ),
    "logMonitoringCategorical": Attempt(
        _ID,
        "project:adapt",
        variables={"project": P, "runId": "$run", "input": {"name": "c", "labels": ["a"], "values": [1.0]}},
    ),
    "deleteMonitoringRun": Attempt(_NOTHING, "project:adapt", variables={"project": P, "runId": "$run"}),
    "deleteMonitoringRuns": Attempt(_NOTHING, "project:adapt", variables={"project": P, "runIds": ["$other_run"]}),
    "createCustomRecipe": Attempt(
        _ID,
        "project:adapt",
        variables={"project": P, "input": {"name": "new", "key": "lesson"}},
        file=("lesson.py", RECIPE.encode()),
    ),
    "updateCustomRecipe": Attempt(
        _ID,
        "project:adapt",
        variables={"project": P, "id": "lesson", "input": {"description": "d"}},
        file=("lesson.txt", b"no code"),
    ),
    "patchCustomRecipe": Attempt(
        _ID,
        "project:adapt",
        variables={"project": P, "id": "lesson", "input": {"filesToDelete": ["none.py"]}, "files": []},
    ),
    "duplicateCustomRecipe": Attempt(
        _ID, "project:adapt", variables={"project": P, "id": "lesson", "input": {"name": "Copy"}}
    ),
    "promoteCheckpoint": Attempt(
        _ID,
        "project:adapt",
        variables={"input": {"artifactId": "$checkpoint", "models": [{"modelKey": "one", "name": "Promoted"}]}},
    ),
    "createJob": Attempt(
        _ID,
        "project:adapt",
        variables={
            "input": {"recipe": "lesson", "project": P, "args": {}, "numGpus": 1, "computePool": "nowhere"},
        },
    ),
    "cancelJob": Attempt(_ID, "project:adapt", variables={"id": "$job"}),
    "updateJob": Attempt(_ID, "project:adapt", variables={"id": "$job", "input": {"name": "renamed"}}),
    "updateJobProgress": Attempt(
        "{ __typename }", None, variables={"jobId": "$job", "event": {"heartbeat": {"placeholder": True}}}
    ),
    "deleteJob": Attempt(_NOTHING, "project:adapt", variables={"id": "$job"}),
    "deleteCustomRecipe": Attempt(_NOTHING, "project:adapt", variables={"project": P, "id": "lesson"}),
    "addModel": Attempt(_ID, "model:create", ANYWHERE, {"input": {"path": "/nowhere", "name": "x", "key": "x"}}),
    "addExternalModel": Attempt(
        _ID,
        "model:create",
        ANYWHERE,
        {
            "input": {
                "name": "three",
                "provider": "OPEN_AI",
                "providerData": {"openAI": {"apiKey": "secret", "externalModelId": "three"}},
            }
        },
    ),
    "importHfModel": Attempt(
        _ID, "model:create", ANYWHERE, {"input": {"modelId": "a/b", "outputModelName": "b", "hfToken": "hf_x"}}
    ),
    "updateModel": Attempt(_ID, "model:update", ANYWHERE, {"input": {"model": "one", "stable": True}}),
    "updateModelComputeConfig": Attempt(
        _ID, "model:update", ANYWHERE, {"idOrKey": "one", "input": {"kvCacheLen": 1024}}
    ),
    "addModelsToProject": Attempt(
        "{ success }", "project:update", variables={"input": {"project": P, "models": ["one"]}}
    ),
    "deployModel": Attempt(
        "{ warnings }", "project:update", variables={"input": {"project": P, "model": "one", "wait": False}}
    ),
    "updateModelService": Attempt(
        _ID, "project:update", variables={"input": {"project": P, "modelService": "one", "isDefault": True}}
    ),
    "createSystemPromptTemplate": Attempt(
        _ID, "project:update", variables={"project": P, "input": {"name": "kind", "template": "Be {{ how }}."}}
    ),
    "deleteSystemPromptTemplate": Attempt(_NOTHING, "project:update", variables={"project": P, "id": "$system_prompt"}),
    "removeModelFromProject": Attempt(_NOTHING, "project:update", variables={"input": {"project": P, "model": "two"}}),
    "deleteModel": Attempt(_NOTHING, "model:update", ANYWHERE, {"input": {"model": "three"}}),
    "terminateModel": Attempt(_NOTHING, "model:update", ANYWHERE, {"idOrKey": "one", "force": True}),
    "resizeInferencePartition": Attempt(
        _NOTHING, "compute:manage", ANYWHERE, {"input": {"computePool": "default", "size": 1}}
    ),
    "createDataset": Attempt(
        _ID,
        "dataset:create",
        variables={"input": {"project": P, "name": "rows", "key": "rows"}},
        file=("rows", b'{"messages": [{"role": "user", "content": "hello"}]}\n'),
    ),
    "createDatasetFromMultipartUpload": Attempt(
        "{ datasetId }",
        "dataset:create",
        variables={"input": {"project": P, "name": "parts", "uploadSessionId": str(uuid.uuid4())}},
    ),
    "deleteDataset": Attempt(_NOTHING, "dataset:create", variables={"project": P, "idOrKey": "rows"}),
    "createDatasetFromFilters": Attempt(
        _ID,
        "dataset:create",
        variables={
            "input": {"project": P, "name": "kept", "kind": "PROMPT_COMPLETION", "completionQuery": _EVERY_COMPLETION}
        },
    ),
    "updateCompletion": Attempt(_ID, "project:update", variables={"input": {"id": "$completion", "metadata": {}}}),
    "deleteCompletion": Attempt(_NOTHING, "project:update", variables={"id": "$completion"}),
    "deleteCompletionSelection": Attempt(
        _NOTHING, "project:update", variables={"project": P, "selection": _EVERY_COMPLETION}
    ),
    "createGrader": Attempt(_ID, "metric:create", variables={"project": P, "input": GRADER}),
    "updateGrader": Attempt(_ID, "metric:create", variables={"project": P, "id": "strict", "input": {"name": "S"}}),
    "lockGrader": Attempt(_ID, "metric:create", variables={"project": P, "id": "strict", "locked": False}),
    "validateFunctionGrader": Attempt("{ valid }", "metric:create", variables={"project": P, "code": "x = 1"}),
    "deleteGrader": Attempt("{ success }", "metric:create", variables={"project": P, "id": "strict"}),
    "addRemoteEnv": Attempt(_ID, "metric:create", ANYWHERE, {"input": _UNREACHABLE}),
    "removeRemoteEnv": Attempt(_NOTHING, "metric:create", ANYWHERE, {"idOrKey": "none"}),
    "testRemoteEnv": Attempt("{ __typename }", "metric:create", ANYWHERE, {"input": _UNREACHABLE}),
    "createIntegration": Attempt(
        _ID,
        "team:manage_integrations",
        TEAM,
        {"team": "default", "input": {"name": "hook", "provider": "webhook", "config": WEBHOOK}},
    ),
    "updateIntegration": Attempt(
        _ID, "team:manage_integrations", TEAM, {"id": "$integration", "input": {"name": "renamed"}}
    ),
    "deleteIntegration": Attempt(_NOTHING, "team:manage_integrations", TEAM, {"id": "$integration"}),
    "testNotification": Attempt(
        "{ message }",
        "team:manage_integrations",
        TEAM,
        {"input": {"topic": "job:done", "scope": {"team": "default"}, "payload": {}}},
    ),
}
"""By name."""
OWN_AFFAIR = {"revokeApiKey": "a key of somebody else does not exist for whoever may not manage users"}
"""Mutations that answer otherwise, with how; tests of their own hold them to it."""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with furnished(tmp_path_factory.mktemp("plane")) as built:
        yield built


def test_every_mutation_has_its_permission_here() -> None:
    assert set(MUTATIONS) - set(OWN_AFFAIR) == set(ATTEMPTS)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_only_who_may_does(laboratory: Laboratory, name: str) -> None:
    attempt = ATTEMPTS[name]
    wrong = {}

    def allowed(person: tuple[str, str]) -> bool:
        return may(attempt.permission, attempt.where, *person)

    # Whoever must be refused comes first, while there is something to be refused.
    for person in sorted(laboratory.people, key=allowed):
        code = laboratory.post(laboratory.people[person], name, attempt)
        if (code != "permission_denied") != allowed(person):
            wrong[person] = code
    assert not wrong
