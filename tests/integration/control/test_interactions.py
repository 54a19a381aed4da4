"""Interactions: recorded by hand and found again, by filter, in pages and in groups, on both databases."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from tests.integration.control.asking import data, refusal
from tests.integration.control.conftest import Plane, on_both

Json = dict[str, Any]


@pytest.fixture
def lab(lab: Adaptive) -> Adaptive:
    """With a second metric."""
    lab.feedback.register_key("lab", "helpful", "bool")
    return lab


def record(lab: Adaptive, prompt: str, completion: str, **more: Any) -> str:
    made = lab.interactions.create(messages=[{"role": "user", "content": prompt}], completion=completion, **more)
    return str(made.completion_id)


def found(plane: Plane, condition: Json, **filter: Any) -> list[str]:
    """The answers that a filter lets through, sorted."""
    query = "query ($f: ListCompletionsFilterInput!) { completions(filter: $f, page: {}) { nodes { completion } } }"
    answer = data(plane, query, {"f": {"project": "lab", "advancedFilter": condition, **filter}})
    return sorted(node["completion"] for node in answer["completions"]["nodes"])


def post(plane: Plane, path: str, body: Json, api_key: str | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {api_key or plane.api_key}"}
    return httpx.post(f"{plane.url}/api/v1/{path}", json=body, headers=headers)


@on_both
def test_what_was_recorded_is_found_with_all_that_belongs_to_it(lab: Adaptive) -> None:
    session, user = uuid.uuid4(), uuid.uuid4()
    made = lab.interactions.create(
        messages=[
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
        completion="A dot.\0",
        model="one",
        feedbacks=[
            {"feedback_key": "stars", "value": 4, "details": "short"},
            {"feedback_key": "helpful", "value": True},
        ],
        user=user,
        session_id=session,
        labels={"country": "fr"},
        created_at="2025-01-31T12:00:00Z",
    )
    assert made.session_id == session
    item = lab.interactions.get(str(made.completion_id))
    assert item is not None
    assert [(message.role, message.content) for message in item.chat_messages] == [
        ("system", "Be kind."),
        ("user", "What is this?"),
    ]
    assert item.completion == "A dot.�"
    assert (item.source.value, item.created_at) == ("OFFLINE", 1738324800000)
    assert item.model is not None and item.model.key == "one"
    assert [(label.key, label.value) for label in item.labels] == [("country", "fr")]
    scores = {score.metric.key: (score.value, score.details) for score in item.direct_scores if score.metric}
    assert scores == {"stars": (4.0, "short"), "helpful": (1.0, None)}
    assert [str(score.id) for score in item.direct_scores] == [str(one) for one in made.feedback_ids]
    assert lab.interactions.get(str(uuid.uuid4())) is None


@on_both
def test_filters(plane: Plane, lab: Adaptive) -> None:
    session = uuid.uuid4()
    record(lab, "Hello", "a", model="one", labels={"lang": "en", "team": "x"}, created_at="2024-05-01T00:00:00Z")
    record(lab, "Hello", "b", model="two", labels={"lang": "fr"}, session_id=session)
    bad = record(lab, "Good 100% bye_", "c", feedbacks=[{"feedback_key": "stars", "value": 1}])
    record(lab, "good bye", "d", model="two", feedbacks=[{"feedback_key": "stars", "value": 5}])
    me = lab.users.me()
    assert me is not None
    every = ["a", "b", "c", "d"]
    hello = lab.interactions.list(filters={"completion_id": bad}, project="lab")
    assert hello.total_count == 1
    day = int(datetime(2024, 5, 1, tzinfo=UTC).timestamp() * 1000)
    cases: list[tuple[Json, list[str]]] = [
        ({}, every),
        ({"and": []}, every),
        ({"or": []}, every),
        ({"and": [{}, {}]}, every),
        ({"not": {}}, []),
        ({"model": {"in": ["one"]}}, ["a"]),
        ({"model": {"eq": "two"}}, ["b", "d"]),
        ({"model": {"neq": "two"}}, ["a", "c"]),
        ({"not": {"model": {"eq": "two"}}}, ["a", "c"]),
        ({"model": {"in": []}}, []),
        ({"model": None, "source": None}, every),
        ({"label": {"key": "lang"}}, ["a", "b"]),
        ({"label": {"key": "lang", "value": {"in": ["fr", "de"]}}}, ["b"]),
        ({"label": {"key": "lang", "value": {"neq": "fr"}}}, ["a"]),
        ({"not": {"label": {"key": "team"}}}, ["b", "c", "d"]),
        ({"scores": {"metric": "stars", "value": {"gte": 2}}}, ["d"]),
        ({"scores": {"metric": "stars"}}, ["c", "d"]),
        ({"scores": {"metric": "stars", "reasons": ["none"]}}, []),
        ({"source": "OFFLINE"}, every),
        ({"and": [{"source": "OFFLINE"}, {"source": "LIVE"}]}, []),
        ({"sessionId": str(session)}, ["b"]),
        ({"completionId": bad}, ["c"]),
        ({"createdBy": {"eq": me.email}}, every),
        ({"createdBy": {"neq": str(me.id)}}, []),
        ({"prompt": {"contains": "good"}}, ["c", "d"]),
        ({"prompt": {"contains": "100%"}}, ["c"]),
        ({"prompt": {"contains": "e_"}}, ["c"]),
        ({"completion": {"eq": "a"}}, ["a"]),
        ({"timerange": {"from": "now - 1 month", "to": "now + 1 day"}}, ["b", "c", "d"]),
        ({"timerange": {"from": "2024-05-01", "to": "2024-05-02"}}, ["a"]),
        ({"timerange": {"from": day, "to": day}}, ["a"]),
        (
            {"or": [{"model": {"eq": "one"}}, {"and": [{"model": {"eq": "two"}}, {"label": {"key": "lang"}}]}]},
            ["a", "b"],
        ),
    ]
    for condition, expected in cases:
        assert found(plane, condition) == expected, condition


def test_the_simple_filters_join_and_the_advanced_one_wins(plane: Plane, lab: Adaptive) -> None:
    record(lab, "p", "a", model="one", labels={"lang": "en"}, feedbacks=[{"feedback_key": "stars", "value": 3}])
    record(lab, "p", "b", model="two", labels={"lang": "fr"})
    simple = {
        "models": ["one"],
        "labels": [{"key": "lang", "value": ["en"]}],
        "scores": [{"metric": "stars", "gt": 2}],
        "source": ["OFFLINE", "LIVE"],
        "completion": "A",
        "prompt": "P",
        "timerange": {"from": 0, "to": "now"},
    }
    query = "query ($f: ListCompletionsFilterInput!) { completions(filter: $f, page: {}) { nodes { completion } } }"
    answer = data(plane, query, {"f": {"project": "lab", **simple}})
    assert [node["completion"] for node in answer["completions"]["nodes"]] == ["a"]
    assert found(plane, {"model": {"eq": "two"}}, **simple) == ["b"]


def test_filters_that_make_no_sense_are_refused(plane: Plane, lab: Adaptive) -> None:
    query = "query ($f: ListCompletionsFilterInput!) { completions(filter: $f, page: {}) { totalCount } }"
    cases: list[tuple[Json, str]] = [
        ({"scores": {"metric": "nothing"}}, "EntityNotFound: Metric 'nothing' does not exist"),
        ({"timerange": {"from": "yesterday-ish", "to": "now"}}, "timerange.from: 'yesterday-ish' is no moment"),
        ({"timerange": {"from": "now - 99999 years", "to": "now"}}, "is no moment"),
        ({"and": [{}] * 600}, "at most 500 parts"),
    ]
    for condition, told in cases:
        assert told in refusal(plane, query, {"f": {"project": "lab", "advancedFilter": condition}})


@on_both
def test_pages_stay_where_they_are_while_interactions_come_in(plane: Plane, lab: Adaptive) -> None:
    for place in range(7):
        record(lab, "p", str(place), model="one", created_at=f"2025-01-01T00:00:0{place // 2}Z")
    seen: list[str] = []
    page: Json = {"first": 3}
    while True:
        answer = lab.interactions.list(page=page)  # newest first
        seen += [node.completion or "" for node in answer.nodes]
        record(lab, "p", "late", model="one")
        if not answer.page_info.has_next_page:
            break
        page = {"first": 3, "after": answer.page_info.end_cursor}
    assert sorted(seen) == [str(place) for place in range(7)]
    assert seen[-1] in "01"
    query = """query ($p: CursorPageInput!, $o: [OrderPair!]) {
        completions(filter: {project: "lab"}, page: $p, order: $o) {
        totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor } nodes { completion } } }"""
    order = [{"field": "model", "order": "ASC"}, {"field": "created_at", "order": "ASC"}]
    last = data(plane, query, {"p": {"last": 2}, "o": order})["completions"]
    assert [node["completion"] for node in last["nodes"]] == ["late", "late"]
    assert (last["pageInfo"]["hasPreviousPage"], last["pageInfo"]["hasNextPage"]) == (True, False)
    before = data(plane, query, {"p": {"last": 20, "before": last["pageInfo"]["startCursor"]}, "o": order})[
        "completions"
    ]
    assert len(before["nodes"]) == last["totalCount"] - 2
    assert before["pageInfo"]["hasNextPage"] is True
    skipped = data(plane, query, {"p": {"first": 2, "offset": 6}, "o": order})["completions"]
    assert [node["completion"] for node in skipped["nodes"]] == ["6", "late"]
    for wrong, told in (
        ({"first": -1}, "first must be from 0"),
        ({"first": 100000}, "first must be from 0"),
        ({"after": "bm90IGEgY3Vyc29y"}, "is no cursor"),
        ({"after": last["pageInfo"]["endCursor"], "offset": -1}, "offset must be"),
    ):
        assert told in refusal(plane, query, {"p": wrong, "o": order})
    elsewhere = {"p": {"after": last["pageInfo"]["endCursor"]}, "o": [{"field": "created_at", "order": "DESC"}]}
    assert "is no cursor of a list in this order" in refusal(plane, query, elsewhere)
    unknown = {"p": {}, "o": [{"field": "createdAt", "order": "ASC"}]}
    assert "'createdAt' is nothing to order by; choose from created_at, id, model" in refusal(plane, query, unknown)


@on_both
def test_groups_by_model_and_by_prompt(plane: Plane, lab: Adaptive) -> None:
    for value in (1, 2, 6):
        record(lab, "p", str(value), model="one", feedbacks=[{"feedback_key": "stars", "value": value}])
    record(lab, "q", "x", model="two", feedbacks=[{"feedback_key": "helpful", "value": False}])
    record(lab, "q", "y")
    groups = lab.interactions.list(group_by="model", page={"first": 2})
    assert (groups.total_count, [node.key for node in groups.nodes]) == (3, [None, "one"])
    one = groups.nodes[1]
    assert (one.count, len(one.completions.nodes)) == (3, 2)
    (stats,) = one.direct_scores_stats
    assert stats.metric.key == "stars"
    assert (stats.scores, stats.average, stats.max, stats.min, stats.sum) == (3, 3, 6, 1, 9)
    assert stats.stddev == pytest.approx(7**0.5)
    rest = lab.interactions.list(group_by="model", page={"first": 2, "after": groups.page_info.end_cursor})
    assert [(node.key, node.count) for node in rest.nodes] == [("two", 1)]
    assert rest.nodes[0].direct_scores_stats[0].stddev is None
    assert rest.page_info.has_next_page is False
    prompts = lab.interactions.list(group_by="prompt", order=[{"field": "count", "order": "DESC"}])
    assert [node.count for node in prompts.nodes] == [3, 2]
    assert found(plane, {"promptHash": {"eq": prompts.nodes[1].key}}) == ["x", "y"]


def test_interactions_that_make_no_sense_are_refused(plane: Plane, lab: Adaptive) -> None:
    cases: list[tuple[Json, int, str]] = [
        ({"messages": []}, 400, "at least one message"),
        ({"completion": None}, 400, "completion"),
        ({"project": "nowhere"}, 404, "does not exist"),
        ({"model_service": "three"}, 404, "'three' was not added here"),
        ({"labels": {"k": "v" * 2000}}, 400, "values at most 1024"),
        ({"feedbacks": [{"metric": "stars", "value": "five"}]}, 400, "takes finite numbers, got 'five'"),
        ({"feedbacks": [{"metric": "stars", "value": True}]}, 400, "takes finite numbers, got True"),
        ({"feedbacks": [{"metric": "helpful", "value": 2}]}, 400, "takes 0, 1, true and false, got 2"),
        ({"feedbacks": [{"metric": "no", "value": 2}]}, 404, "Metric 'no' does not exist"),
        ({"created_at": "soon"}, 400, "created_at: 'soon' is no moment"),
        ({"session": "x"}, 400, "session"),
    ]
    for change, status, told in cases:
        body = {"project": "lab", "messages": [{"role": "user", "content": "p"}], "completion": "a", **change}
        answer = post(plane, "interactions", body)
        assert (answer.status_code, told in answer.text) == (status, True), answer.text
    assert found(plane, {}) == []  # not even in part


def test_who_may_not_read_sees_nothing(plane: Plane, lab: Adaptive, adaptive_as: Callable[[str], Adaptive]) -> None:
    made = record(lab, "p", "a")
    lab.teams.create("outside", "Outside")
    account = lab.users.create_service_account(name="bot", teams_with_role=[("outside", "power_user")])
    bot = adaptive_as(account.api_key)
    bot.set_default_project("lab")
    assert bot.interactions.get(made) is None
    with pytest.raises(GraphQLClientGraphQLMultiError, match="interaction:read"):
        bot.interactions.list()
    body = {"project": "lab", "messages": [{"role": "user", "content": "p"}], "completion": "a"}
    assert post(plane, "interactions", body, account.api_key).status_code == 403
    # A caller with a project of its own cannot reach others through it.
    bot.projects.create("own", "Own")
    assert bot.interactions.get(made, project="own") is None
