"""Changing projects, users and metrics after they were made."""

from __future__ import annotations

from typing import Any

from adaptive_sdk import Adaptive

from tests.integration.control.asking import data, refusal
from tests.integration.control.conftest import Plane, on_both

Json = dict[str, Any]

PROJECT = (
    "id name description isArchived metadata { emoji { native } imageKey } settings { defaultMetric { key } } "
    'models { key } modelServices { key } modelService(idOrKey: "one") { key } defaultModelService { key } '
    'metric(metric: "stars") { key grader { key } } abCampaigns { key } labelUsage { keys { key } }'
)
CHANGE = f'mutation ($i: ProjectUpdate!) {{ updateProject(idOrKey: "lab", input: $i) {{ {PROJECT} }} }}'


@on_both
def test_projects_are_changed_and_put_away(plane: Plane, lab: Adaptive) -> None:
    lab.interactions.create(messages=[{"role": "user", "content": "?"}], completion="!", labels={"site": "x"})
    given: Json = {"name": "Laboratory", "description": "For trials", "settings": {"defaultMetric": "stars"}}
    given["metadata"] = {"emoji": {"native": "🧪"}, "imageKey": None}
    found = data(plane, CHANGE, {"i": given})["updateProject"]
    assert (found["name"], found["description"], found["isArchived"]) == ("Laboratory", "For trials", False)
    assert found["metadata"] == {"emoji": {"native": "🧪"}, "imageKey": None}
    assert found["settings"] == {"defaultMetric": {"key": "stars"}}
    assert [model["key"] for model in found["models"]] == ["one", "two"]
    assert (found["modelService"], found["defaultModelService"]) == ({"key": "one"}, None)
    assert found["metric"] == {"key": "stars", "grader": None}
    assert found["labelUsage"] == {"keys": [{"key": "site"}]}
    same = data(plane, CHANGE, {"i": {}})["updateProject"]
    assert same == found
    assert "EntityNotFound" in refusal(plane, CHANGE, {"i": {"settings": {"defaultMetric": "none"}}})
    assert "name" in refusal(plane, CHANGE, {"i": {"name": " "}})

    services = 'query ($f: ModelServiceFilter) { project(idOrKey: "lab") { modelServices(filter: $f) { key } } }'
    for filter, keys in (
        (None, ["one", "two"]),
        ({"model": "two"}, ["two"]),
        ({"capabilities": {"any": ["Embedding"]}}, []),
        ({"capabilities": {"all": ["TextGeneration"]}, "activeOnly": True}, ["one", "two"]),
    ):
        answer = data(plane, services, {"f": filter})["project"]["modelServices"]
        assert [item["key"] for item in answer] == keys

    assert data(plane, CHANGE, {"i": {"isArchived": True}})["updateProject"]["isArchived"] is True
    assert [item.key for item in lab.projects.list()] == []
    listed = data(plane, "{ projects(filter: {isArchived: true}) { key } }")
    assert listed["projects"] == [{"key": "lab"}]
    assert data(plane, CHANGE, {"i": {"isArchived": False}})["updateProject"]["isArchived"] is False
    assert [item.key for item in lab.projects.list()] == ["lab"]


@on_both
def test_metrics_are_deleted_and_their_keys_are_free_again(plane: Plane, lab: Adaptive) -> None:
    made = lab.interactions.create(
        messages=[{"role": "user", "content": "?"}],
        completion="!",
        feedbacks=[{"feedback_key": "stars", "value": 3}],
    )
    delete = 'mutation ($m: IdOrKey!) { deleteMetric(project: "lab", metric: $m) }'
    lab.graders.create.custom(key="length")
    assert "grader 'length'" in refusal(plane, delete, {"m": "length"})
    assert data(plane, delete, {"m": "stars"})["deleteMetric"] is True
    assert "EntityNotFound" in refusal(plane, delete, {"m": "stars"})
    assert lab.feedback.get_key("lab", "stars") is None
    item = lab.interactions.get(str(made.completion_id))
    assert item is not None and item.direct_scores == []
    lab.feedback.register_key("lab", "stars", "bool")
    lab.feedback.log_metric(True, str(made.completion_id), "stars")
    item = lab.interactions.get(str(made.completion_id))
    assert item is not None
    assert [score.value for score in item.direct_scores] == [1]
    preview = "query ($i: DatasetCreateFromFilters!) { previewDatasetFromFilters(input: $i) }"
    chosen = {"fromFilters": {"filters": {"project": "lab"}, "exclude": []}}
    wish = {"project": "lab", "name": "x", "kind": "PROMPT_COMPLETION_SCORE", "completionQuery": chosen}
    (row,) = data(plane, preview, {"i": wish})["previewDatasetFromFilters"]["rows"]
    assert row["feedbacks"] == {"stars": True}


@on_both
def test_users_are_changed_deleted_and_brought_back(plane: Plane, lab: Adaptive) -> None:
    fields = "email name deleted deletedAt firstActivity lastActivity teams { team { key } role { key } }"
    change = f"mutation ($u: IdOrKey!, $i: UserUpdate!) {{ updateUser(user: $u, input: $i) {{ {fields} }} }}"
    lab.teams.create("support", "Support")
    made = lab.users.create(email="ann@example.com", name="Ann", teams_with_role=[("default", "read-only")])
    given = {"name": "Anna", "addTeams": [{"team": "support", "role": "annotator"}], "removeTeams": ["default"]}
    found = data(plane, change, {"u": made.email, "i": given})["updateUser"]
    assert (found["name"], found["deleted"], found["deletedAt"]) == ("Anna", False, None)
    assert found["teams"] == [{"team": {"key": "support"}, "role": {"key": "annotator"}}]
    assert (found["firstActivity"], found["lastActivity"]) == (None, None)
    me = data(plane, f"{{ me {{ {fields} }} }}")["me"]
    assert me["firstActivity"] <= me["lastActivity"]
    back = f"mutation ($u: IdOrKey!) {{ reactivateUser(user: $u) {{ {fields} }} }}"
    assert "was not deleted" in refusal(plane, back, {"u": made.email})
    gone = data(plane, f"mutation ($u: IdOrKey!) {{ deleteUser(user: $u) {{ {fields} }} }}", {"u": made.email})
    assert gone["deleteUser"]["deleted"] is True
    assert "EntityNotFound" in refusal(plane, change, {"u": made.email, "i": {"name": "Ann"}})
    returned = data(plane, back, {"u": made.email})["reactivateUser"]
    assert (returned["deleted"], returned["teams"]) == (False, [])
    assert "EntityNotFound" in refusal(plane, back, {"u": "nobody@example.com"})


def test_nobody_changes_what_is_not_theirs(plane: Plane, lab: Adaptive) -> None:
    made = lab.users.create_service_account(name="ann", teams_with_role=[("default", "read-only")])
    key = made.api_key
    admin, own = "admin@example.com", "ann@system.adaptive.local"
    change = "mutation ($u: IdOrKey!, $i: UserUpdate!) { updateUser(user: $u, input: $i) { name } }"
    assert "lacks" in refusal(plane, change, {"u": admin, "i": {"name": "Mallory"}}, key)
    assert data(plane, change, {"u": own, "i": {"name": "Anna"}}, key)["updateUser"] == {"name": "Anna"}
    given = {"addTeams": [{"team": "admin", "role": "admin"}]}
    assert refusal(plane, change, {"u": own, "i": given}, key)
    for query, variables in (
        (CHANGE, {"i": {"name": "Mine"}}),
        ('mutation { deleteMetric(project: "lab", metric: "stars") }', {}),
        ("mutation ($u: IdOrKey!) { reactivateUser(user: $u) { id } }", {"u": own}),
    ):
        assert "lacks the permission" in refusal(plane, query, variables, key)
