"""Data sets made of interactions, and what else can be done with interactions that somebody picked."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive

from tests.integration.control.asking import data, refusal
from tests.integration.control.conftest import Plane, on_both

Json = dict[str, Any]

CREATE = "mutation ($i: DatasetCreateFromFilters!) { createDatasetFromFilters(input: $i) { key kind records source } }"
PREVIEW = "query ($i: DatasetCreateFromFilters!) { previewDatasetFromFilters(input: $i) }"


@pytest.fixture
def lab(lab: Adaptive) -> Adaptive:
    """With a second metric."""
    lab.feedback.register_key("lab", "helpful", "bool")
    return lab


def record(lab: Adaptive, prompt: str, completion: str, **more: Any) -> str:
    made = lab.interactions.create(messages=[{"role": "user", "content": prompt}], completion=completion, **more)
    return str(made.completion_id)


def wish(kind: str, query: Json | None = None, **more: Any) -> Json:
    query = query or {"fromFilters": {"filters": {"project": "lab"}, "exclude": []}}
    return {"project": "lab", "name": f"Set {uuid.uuid4().hex}", "kind": kind, "completionQuery": query, **more}


def preview(plane: Plane, kind: str, query: Json | None = None, **more: Any) -> list[Json]:
    found = data(plane, PREVIEW, {"i": wish(kind, query, **more)})["previewDatasetFromFilters"]
    assert found["records"] == len(found["rows"])
    rows: list[Json] = found["rows"]
    return rows


def rows_of(plane: Plane, path: str) -> list[Json]:
    answer = httpx.get(f"{plane.url}{path}", headers={"Authorization": f"Bearer {plane.api_key}"})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def answers(rows: list[Json]) -> list[str]:
    return [row["completion"] for row in rows]


@on_both
def test_a_data_set_of_each_kind_is_made_and_downloaded_in_both_forms(plane: Plane, lab: Adaptive) -> None:
    first = record(
        lab, "Hello", "a", model="one", labels={"lang": "en"}, feedbacks=[{"feedback_key": "stars", "value": 1}]
    )
    lab.feedback.log_metric(5, first, "stars")
    lab.feedback.log_metric(True, first, "helpful")
    second = record(lab, "Hello", "b", model="two")
    record(lab, "Bye", "c", model="two")
    lab.feedback.log_preference("stars", preferred_completion=first, other_completion=second)
    expected = {"PROMPT": 2, "PROMPT_COMPLETION": 3, "PROMPT_COMPLETION_SCORE": 1, "PREFERENCE": 1}
    for kind, records in expected.items():
        made = data(plane, CREATE, {"i": wish(kind, key=f"set-{kind.lower()}")})["createDatasetFromFilters"]
        assert made == {"key": f"set-{kind.lower()}", "kind": kind, "records": records, "source": "FILTERED"}
    scored = lab.datasets.get("set-prompt_completion_score")
    assert scored is not None
    assert {use.metric.key: use.score_count for use in scored.metrics_usage} == {"stars": 1, "helpful": 1}
    (row,) = rows_of(plane, scored.download_url)
    assert row["messages"] == [{"role": "user", "content": "Hello"}]
    assert (row["completion"], row["feedbacks"], row["labels"]) == ("a", {"stars": 5, "helpful": True}, {"lang": "en"})
    assert row["metadata"]["completion_id"] == first
    (sample,) = rows_of(plane, f"{scored.download_url}?format=recipe")
    assert (sample["prompt"], sample["completion"]) == ([["user", "Hello"]], ["assistant", "a"])
    assert sample["metrics"] == {"stars": 5, "helpful": 1}
    preferences = lab.datasets.get("set-preference")
    assert preferences is not None
    (row,) = rows_of(plane, preferences.download_url)
    assert (row["preferred_completion"], row["other_completion"], row["feedback_key"]) == ("a", "b", "stars")


@on_both
def test_completions_are_picked_one_by_one_by_filter_and_by_group(plane: Plane, lab: Adaptive) -> None:
    a = record(lab, "Hello", "a", model="one")
    b = record(lab, "Hello", "b", model="two")
    c = record(lab, "Bye", "c", model="two")
    record(lab, "Bye", "d")
    everything = {"project": "lab"}
    kind = "PROMPT_COMPLETION"
    assert answers(preview(plane, kind, {"fromSelection": {"include": [c, a, str(uuid.uuid4())]}})) == ["a", "c"]
    assert answers(preview(plane, kind, {"fromFilters": {"filters": everything, "exclude": [b]}})) == ["a", "c", "d"]
    only = {"fromFilters": {"filters": {**everything, "models": ["two"], "completion": "C"}, "exclude": []}}
    assert answers(preview(plane, kind, only)) == ["c"]

    def of_groups(by: str, *groups: Json) -> list[str]:
        query = {"fromGroups": {"filters": everything, "grouping": by, "groups": list(groups)}}
        return answers(preview(plane, kind, query))

    assert of_groups("MODEL", {"groupId": "two", "selection": {"exclude": [b]}}) == ["c"]
    assert of_groups("MODEL", {"groupId": "two", "selection": {"selectOnly": [b, a]}}) == ["b"]
    assert of_groups("MODEL", {"groupId": "", "selection": {}}) == ["d"]
    assert of_groups("MODEL", {"groupId": "one", "selection": {}}, {"groupId": "", "selection": {}}) == ["a", "d"]
    assert of_groups("MODEL") == []
    described = data(plane, 'query ($i: UUID!) { completion(project: "lab", id: $i) { promptHash } }', {"i": a})
    prompt = described["completion"]["promptHash"]
    assert of_groups("PROMPT", {"groupId": prompt, "selection": {}}) == ["a", "b"]


def test_samples_and_scores(plane: Plane, lab: Adaptive) -> None:
    for number in range(6):
        moment = f"2025-01-0{number + 1}T00:00:00Z"
        feedbacks = [{"feedback_key": "stars" if number % 2 else "helpful", "value": 1}]
        labels = {"site": "x"} if number < 2 else None
        record(lab, f"p{number}", str(number), created_at=moment, feedbacks=feedbacks, labels=labels)
    kind = "PROMPT_COMPLETION"
    last = preview(plane, kind, sampleConfig={"selectionType": "LAST", "sampleSize": 2})
    assert answers(last) == ["4", "5"]
    some = answers(preview(plane, kind, sampleConfig={"selectionType": "RANDOM", "sampleSize": 3}))
    assert len(set(some)) == 3 and some == sorted(some)
    assert len(preview(plane, kind, sampleConfig={"selectionType": "RANDOM", "sampleSize": 100})) == 6
    starred = preview(plane, "PROMPT_COMPLETION_SCORE", metrics=["stars"])
    assert [(row["completion"], row["feedbacks"]) for row in starred] == [(n, {"stars": 1}) for n in ("1", "3", "5")]
    labelled = {"labels": [{"key": "site", "value": ["x"]}]}
    assert answers(preview(plane, "PROMPT_COMPLETION_SCORE", scoreFilters=labelled)) == ["0", "1"]
    for config, says in (
        ({"selectionType": "ALL", "sampleSize": 2}, "leave it out for ALL"),
        ({"selectionType": "LAST"}, "at least 1"),
        ({"selectionType": "RANDOM", "sampleSize": 0}, "got 0"),
    ):
        assert says in refusal(plane, PREVIEW, {"i": wish(kind, sampleConfig=config)})


def test_what_cannot_become_a_data_set_is_said(plane: Plane, lab: Adaptive) -> None:
    assert "widen the filters" in refusal(plane, CREATE, {"i": wish("PROMPT")})
    picture = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            ],
        }
    ]
    made = lab.interactions.create(messages=picture, completion="A dot.")
    said = refusal(plane, CREATE, {"i": wish("PROMPT")})
    assert str(made.completion_id) in said and "leave it out" in said
    lab.projects.create("other", "Other")
    foreign = {"fromFilters": {"filters": {"project": "other"}, "exclude": []}}
    assert "give one" in refusal(plane, CREATE, {"i": wish("PROMPT", foreign)})
    for query in (
        {},
        {"fromSelection": {"include": []}, "fromFilters": {"filters": {"project": "lab"}, "exclude": []}},
    ):
        given = wish("PROMPT") | {"completionQuery": query}
        assert "give one of fromSelection" in refusal(plane, CREATE, {"i": given})
    many = {"fromSelection": {"include": [str(uuid.uuid4()) for _ in range(10_001)]}}
    assert "10000" in refusal(plane, CREATE, {"i": wish("PROMPT", many)})
    assert "EntityNotFound" in refusal(plane, CREATE, {"i": wish("PROMPT_COMPLETION_SCORE", metrics=["none"])})
    assert [item.key for item in lab.datasets.list()] == []


def test_what_was_picked_is_downloaded(plane: Plane, lab: Adaptive) -> None:
    first = record(lab, "Hello", "a", model="one", feedbacks=[{"feedback_key": "stars", "value": 2}])
    record(lab, "Bye", "b")
    query = (
        'query ($s: CompletionSelectionQuery!) { all: completionDownloadUrl(project: "lab", selection: $s) '
        'rows: completionAsDatasetDownloadUrl(project: "lab", selection: $s) }'
    )
    found = data(plane, query, {"s": {"fromFilters": {"filters": {"project": "lab"}, "exclude": []}}})
    whole = rows_of(plane, found["all"])
    assert [(item["completion"], item["model"]) for item in whole] == [("a", "one"), ("b", None)]
    assert [(score["metric"], score["value"]) for score in whole[0]["scores"]] == [("stars", 2)]
    rows = rows_of(plane, found["rows"])
    assert [(row["completion"], row.get("feedbacks")) for row in rows] == [("a", {"stars": 2}), ("b", {})]
    one = data(plane, query, {"s": {"fromSelection": {"include": [first]}}})
    assert answers(rows_of(plane, one["all"])) == ["a"]
    nobody = httpx.get(f"{plane.url}{one['all']}")
    assert nobody.status_code == 401
    head = {"Authorization": f"Bearer {plane.api_key}"}
    for wrong in ("", "!!", "e30=", "W1tb"):
        path = one["all"].partition("selection=")[0]
        assert httpx.get(f"{plane.url}{path}selection={wrong}", headers=head).status_code == 400


@on_both
def test_completions_are_changed_and_deleted(plane: Plane, lab: Adaptive) -> None:
    first = record(
        lab, "Hello", "a", labels={"lang": "en", "site": "x"}, feedbacks=[{"feedback_key": "stars", "value": 2}]
    )
    second, third = record(lab, "Hello", "b"), record(lab, "Hello", "c")
    lab.feedback.log_preference("stars", preferred_completion=first, other_completion=second)
    change = (
        "mutation ($i: UpdateCompletion!) { updateCompletion(input: $i) "
        "{ labels { key value } userMetadata hasUserMetadata canEdit } }"
    )
    given: Json = {"id": first, "removeLabels": [{"key": "lang", "value": "en"}], "metadata": {"note": "seen"}}
    given["addLabels"] = [{"key": "site", "value": "y"}, {"key": "done", "value": "yes"}]
    changed = data(plane, change, {"i": given})["updateCompletion"]
    assert changed["labels"] == [{"key": "done", "value": "yes"}, {"key": "site", "value": "y"}]
    assert (changed["userMetadata"], changed["hasUserMetadata"], changed["canEdit"]) == ({"note": "seen"}, True, True)
    changed = data(plane, change, {"i": {"id": first, "setLabels": []}})["updateCompletion"]
    assert (changed["labels"], changed["userMetadata"]) == ([], {"note": "seen"})
    assert "an object" in refusal(plane, change, {"i": {"id": first, "metadata": 3}})
    assert "EntityNotFound" in refusal(plane, change, {"i": {"id": str(uuid.uuid4())}})
    assert data(plane, "mutation ($i: UUID!) { deleteCompletion(id: $i) }", {"i": first})["deleteCompletion"] is True
    assert lab.interactions.get(first) is None
    kept = lab.interactions.get(second)
    assert kept is not None and kept.comparison_scores == []
    many = 'mutation ($s: CompletionSelectionQuery!) { deleteCompletionSelection(project: "lab", selection: $s) }'
    chosen = {"s": {"fromFilters": {"filters": {"project": "lab"}, "exclude": [third]}}}
    assert data(plane, many, chosen)["deleteCompletionSelection"] is True
    assert data(plane, many, chosen)["deleteCompletionSelection"] is False
    assert [item.completion for item in lab.interactions.list(project="lab").nodes] == ["c"]


def test_what_stands_around_a_completion(plane: Plane, lab: Adaptive) -> None:
    session = uuid.uuid4()
    labels = {"site": "x"}
    first = record(lab, "Hello", "a", model="one", session_id=session, labels=labels, created_at="2023-11-14T22:13:20Z")
    score = {"feedback_key": "stars", "value": 3}
    second = record(
        lab, "More", "b", model="two", session_id=session, feedbacks=[score], created_at="2023-11-14T22:13:21Z"
    )
    record(lab, "More", "c", labels={"site": "y"})
    fields = (
        "completionParts { ... on TextContentPart { text } } modelService { key } createdBy { email } "
        "session { id turns { completion } } history { level completionId prompt completion createdAt } "
        'siblingsCount(filter: {project: "lab"}) none: siblingsCount(filter: {project: "lab", models: ["one"]}) '
        "hasUserMetadata userMetadata canEdit summary { prompt { content truncated imageCount } } "
        "chatMessages { contentParts { __typename ... on TextContentPart { text } ... on ImageContentPart { url } } } "
        "scores: directScores { value createdByUser { email } } "
        'other: directScores(filter: {labels: [{key: "site"}]}) { value }'
    )
    query = f'query ($i: UUID!) {{ completion(project: "lab", id: $i) {{ {fields} }} }}'
    found = data(plane, query, {"i": second})["completion"]
    assert found["completionParts"] == [{"text": "b"}]
    assert (found["modelService"], found["createdBy"]) == ({"key": "two"}, {"email": "admin@example.com"})
    assert found["session"] == {"id": str(session), "turns": [{"completion": "a"}, {"completion": "b"}]}
    earlier = {"level": 1, "completionId": first, "prompt": "Hello", "completion": "a", "createdAt": 1_700_000_000}
    assert found["history"] == [earlier]
    assert (found["siblingsCount"], found["none"]) == (1, 0)
    assert (found["hasUserMetadata"], found["userMetadata"], found["canEdit"]) == (False, None, True)
    assert found["summary"]["prompt"] == {"content": "More", "truncated": False, "imageCount": 0}
    assert found["chatMessages"] == [{"contentParts": [{"__typename": "TextContentPart", "text": "More"}]}]
    assert (found["scores"], found["other"]) == ([{"value": 3, "createdByUser": {"email": "admin@example.com"}}], [])

    options = 'query { interactionOptions(filter: {projectId: "lab"}) { users { email } models { key } labels { keys '
    options += "{ key count lastUsed values { value count } } } } }"
    offered = data(plane, options)["interactionOptions"]
    assert offered["users"] == [{"email": "admin@example.com"}]
    assert [model["key"] for model in offered["models"]] == ["one", "two"]
    (site,) = offered["labels"]["keys"]
    assert (site["key"], site["count"]) == ("site", 2)
    assert site["values"] == [{"value": "x", "count": 1}, {"value": "y", "count": 1}]

    grouped = (
        'query ($s: ScoreFilterInput!) { completionsGrouped(filter: {project: "lab"}, groupBy: MODEL, page: {}, '
        "scoreFilter: $s) { edges { cursor node { key } } nodes { key directScoresStats { scores } } } }"
    )
    for wanted, scores in (({}, [{"scores": 1}]), ({"labels": [{"key": "site"}]}, [])):
        answer = data(plane, grouped, {"s": wanted})["completionsGrouped"]
        assert [edge["node"]["key"] for edge in answer["edges"]] == [None, "one", "two"]
        assert answer["nodes"][2]["directScoresStats"] == scores
