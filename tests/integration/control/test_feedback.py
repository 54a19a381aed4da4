"""Metrics, scores, comparisons and outcomes through the published SDK, and what is refused."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from tests.integration.control.asking import data, refusal
from tests.integration.control.conftest import Plane, on_both

Json = dict[str, Any]
ASK = [{"role": "user", "content": "ask"}]


@pytest.fixture
def lab(adaptive: Adaptive) -> Adaptive:
    """A project with two models and two metrics."""
    adaptive.projects.create("lab", "Lab")
    adaptive.set_default_project("lab")
    for name in ("one", "two"):
        adaptive.models.add_external(name=name, external_model_id=name, api_key="secret", provider="open_ai")
        adaptive.models.add_to_project(name, "lab")
    adaptive.feedback.register_key("lab", "stars", "scalar", description="How good.")
    adaptive.feedback.register_key("lab", "cost", "bool", "lower_is_better", name="Costly")
    return adaptive


def post(plane: Plane, path: str, body: Json) -> httpx.Response:
    return httpx.post(f"{plane.url}/api/v1/{path}", json=body, headers={"Authorization": f"Bearer {plane.api_key}"})


def answered(lab: Adaptive, text: str = "answer", messages: list[Json] | None = None, **more: Any) -> Any:
    return lab.interactions.create(messages=messages or ASK, completion=text, **more)


@on_both
def test_metrics_are_made_listed_and_described(plane: Plane, lab: Adaptive) -> None:
    stars = lab.feedback.get_key("lab", "stars")
    assert stars is not None
    assert (stars.name, stars.kind.value, stars.scoring_type.value) == ("stars", "SCALAR", "HIGHER_IS_BETTER")
    assert (stars.description, stars.has_direct_scores, stars.has_comparison_scores) == ("How good.", False, False)
    listed = {metric.key: metric for metric in lab.feedback.list_keys()}
    assert listed["cost"].scoring_type.value == "LOWER_IS_BETTER"
    assert [project.key for project in listed["cost"].projects] == ["lab"]
    project = lab.projects.get("lab")
    assert project is not None
    assert [metric.key for metric in project.metrics] == ["stars", "cost"]
    assert str(project.metrics[0].created_at).endswith("Z")
    assert lab.feedback.get_key("lab", "nothing") is None
    assert lab.feedback.get_key("nowhere", "stars") is None
    with pytest.raises(GraphQLClientGraphQLMultiError, match="'stars' is taken by another metric"):
        lab.feedback.register_key("lab", "stars", "bool")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="is no key"):
        lab.feedback.register_key("lab", "no key!", "bool")
    lab.projects.create("other", "Other")
    lab.feedback.register_key("other", "stars", "bool")  # keys belong to projects
    query = """mutation { updateMetric(project: "lab", metric: "stars", input: {name: "Stars", description: null}) {
        name description } }"""
    assert data(plane, query)["updateMetric"] == {"name": "Stars", "description": "How good."}


@on_both
def test_scores_are_found_on_the_completion(plane: Plane, lab: Adaptive) -> None:
    completion = answered(lab).completion_id
    logged = lab.feedback.log_metric(value=4.5, completion_id=completion, feedback_key="stars", details="fine")
    lab.feedback.log_metric(value=True, completion_id=completion, feedback_key="cost")
    lab.feedback.log_metric(value=0, completion_id=completion, feedback_key="cost")
    sent = post(
        plane, "feedback", {"completion_id": str(completion), "metric": "stars", "value": -1, "reason": "Style"}
    )
    assert sent.status_code == 201
    item = lab.interactions.get(str(completion))
    assert item is not None
    scores = [(score.metric.key, score.value, score.reason) for score in item.direct_scores if score.metric]
    assert scores == [("stars", 4.5, None), ("cost", 1, None), ("cost", 0, None), ("stars", -1, "Style")]
    assert [str(item.direct_scores[0].id), str(item.direct_scores[3].id)] == [
        str(logged.feedback_id),
        sent.json()["feedback_id"],
    ]
    used = lab.feedback.get_key("lab", "stars")
    assert used is not None and used.has_direct_scores


def test_values_that_a_metric_does_not_take_are_refused(plane: Plane, lab: Adaptive) -> None:
    completion = str(answered(lab).completion_id)
    for metric, value in (
        ("cost", 0.5),
        ("cost", "true"),
        ("cost", None),
        ("cost", [1]),
        ("stars", "5"),
        ("stars", True),
        ("stars", {"a": 1}),
        ("stars", 10**400),
    ):
        answer = post(plane, "feedback", {"completion_id": completion, "metric": metric, "value": value})
        assert answer.status_code == 400, (metric, value)
        assert "the metric" in answer.json()["error"]["message"]
    with pytest.raises(AdaptiveEntityNotFoundError, match=r"feedback|metric"):
        lab.feedback.log_metric(value=1, completion_id=completion, feedback_key="nothing")
    with pytest.raises(AdaptiveEntityNotFoundError, match=r"Completion .* does not exist"):
        lab.feedback.log_metric(value=1, completion_id=uuid.uuid4(), feedback_key="stars")
    item = lab.interactions.get(completion)
    assert item is not None and item.direct_scores == []


@on_both
def test_preferences_between_recorded_completions_and_between_texts(plane: Plane, lab: Adaptive) -> None:
    good, bad = answered(lab, "good", model="one").completion_id, answered(lab, "bad", model="two").completion_id
    made = lab.feedback.log_preference("stars", preferred_completion=good, other_completion=bad)
    for completion in (good, bad):
        item = lab.interactions.get(str(completion))
        assert item is not None
        (score,) = item.comparison_scores
        assert str(score.id) == str(made.comparison_id)
        assert score.prefered_completion is not None and score.other_completion is not None
        assert (score.prefered_completion.completion, score.other_completion.completion) == ("good", "bad")
        assert score.other_completion.model is not None and score.other_completion.model.key == "two"
        assert score.metric is not None and score.metric.key == "stars"
    lab.feedback.log_preference(
        "stars",
        preferred_completion={"model": "one", "text": "x"},
        other_completion={"model": "two", "text": "y"},
        messages=ASK,
    )
    body = {"project": "lab", "metric": "stars", "tied": "good", "messages": ASK}
    mixed = {**body, "preferred_completion": str(good), "other_completion": {"model": "two", "text": "z"}}
    assert post(plane, "comparison", mixed).status_code == 201
    listed = lab.interactions.list(filters={})
    assert sorted(node.completion or "" for node in listed.nodes) == ["bad", "good", "x", "y", "z"]
    compared = (
        """{ completions(filter: {project: "lab", comparisons: [{metric: "stars"}]}, page: {}) { totalCount } }"""
    )
    assert data(plane, compared)["completions"]["totalCount"] == 5


def test_comparisons_that_make_no_sense_are_refused(plane: Plane, lab: Adaptive) -> None:
    one, other = str(answered(lab).completion_id), str(answered(lab).completion_id)
    elsewhere = str(answered(lab, messages=[{"role": "user", "content": "something else"}]).completion_id)
    body = {"project": "lab", "metric": "stars", "preferred_completion": one, "other_completion": other}
    text = {"text": "x", "model": "one"}
    cases: list[tuple[Json, int, str]] = [
        ({"other_completion": elsewhere}, 400, "answer different prompts"),
        ({"other_completion": one}, 400, "is the preferred completion too"),
        ({"other_completion": text}, 400, "give the prompt that it answers as 'messages'"),
        ({"other_completion": text, "messages": [{"role": "user", "content": "?"}]}, 400, "different prompts"),
        ({"other_completion": {**text, "model": "no"}, "messages": ASK}, 404, "'no' was not added"),
        ({"other_completion": "not an id"}, 400, "is no id of a completion"),
        ({"other_completion": str(uuid.uuid4())}, 404, "does not exist"),
        ({"tied": "maybe"}, 400, "tied"),
        ({"metric": "nothing"}, 404, "Metric 'nothing' does not exist"),
    ]
    for change, status, told in cases:
        answer = post(plane, "comparison", {**body, **change})
        assert (answer.status_code, told in answer.text) == (status, True), answer.text
    assert lab.interactions.list().total_count == 3  # refused texts were not recorded


@on_both
def test_outcomes_belong_to_sessions(plane: Plane, lab: Adaptive) -> None:
    session = answered(lab).session_id
    body = {"session_id": str(session), "metric": "stars", "value": 3}
    for where in ({}, {"project": "lab"}, {"project_id": "lab"}):
        answer = post(plane, "outcome", {**body, **where})
        assert answer.status_code == 201
        assert uuid.UUID(answer.json()["outcome_id"])
    lab.projects.create("other", "Other")
    cases: list[tuple[Json, int, str]] = [
        ({"session_id": str(uuid.uuid4())}, 404, "Session"),
        ({"project": "other"}, 404, "Session"),
        ({"value": "x"}, 400, "takes finite numbers"),
        ({"metric": "no"}, 404, "Metric 'no'"),
    ]
    for change, status, told in cases:
        answer = post(plane, "outcome", {**body, **change})
        assert (answer.status_code, told in answer.text) == (status, True), answer.text


def test_only_who_may_log_does(plane: Plane, lab: Adaptive) -> None:
    completion = str(answered(lab).completion_id)
    account = lab.users.create_service_account(name="bot", teams_with_role=[("default", "read-only")])
    query = (
        """mutation ($id: UUID!) { addDirectScore(completionId: $id, metricId: "stars", input: {value: 1}) { id } }"""
    )
    assert "metric:log" in refusal(plane, query, {"id": completion}, account.api_key)
    make = 'mutation { createMetric(project: "lab", input: {name: "m", kind: BOOL}) { id } }'
    assert "metric:create" in refusal(plane, make, api_key=account.api_key)
    lab.teams.create("outside", "Outside")
    stranger = lab.users.create_service_account(name="stranger", teams_with_role=[("outside", "power_user")])
    assert data(plane, "{ metrics { id } }", api_key=stranger.api_key)["metrics"] == []
    one = '{ metric(projectIdOrKey: "lab", metricIdOrKey: "stars") { id } }'
    assert data(plane, one, api_key=stranger.api_key)["metric"] is None
