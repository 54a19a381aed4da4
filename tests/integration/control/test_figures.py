"""Figures for charts: usage, activity and scores by time, in the caller's units, on both databases."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import pytest
from adaptive_sdk import Adaptive
from sqlalchemy import event, select

from harmonia.server.db.database import Database
from harmonia.server.db.metrics import Metric
from harmonia.server.db.people import User
from harmonia.server.services.access import Caller
from harmonia.server.services.figures.activity import ActivityFigures
from harmonia.server.services.figures.buckets import DAY, HOUR, MONTH, QUARTER, WEEK, WHOLE, YEAR, Span, buckets_of
from harmonia.server.services.figures.scores import ScoreFigures, SeriesWish, Subject
from harmonia.server.services.figures.usage import UsageFigures, UsageWish
from harmonia.server.services.interactions.writer import InteractionWriter
from tests.integration.control.asking import data, make_project, refusal
from tests.integration.control.conftest import Plane, on_both
from tests.integration.control.test_system_metrics import measured, written

PARIS = "Europe/Paris"
MARCH = {"from": "2026-03-28T00:00:00+01:00", "to": "2026-04-01T00:00:00+02:00"}
"""Four days in Paris, of which the second has 23 hours."""
TOKENS = "promptTokens completionTokens totalTokens interactions"


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def amount(prompt: int, completion: int, interactions: int) -> dict[str, int]:
    total = prompt + completion
    return {
        "promptTokens": prompt,
        "completionTokens": completion,
        "totalTokens": total,
        "interactions": interactions,
    }


def ids(plane: Plane) -> dict[str, str]:
    """Of the models, the project and the admin."""
    found = data(plane, '{ models { key id } me { id } project(idOrKey: "lab") { id } }')
    models = {model["key"]: model["id"] for model in found["models"]}
    return {**models, "me": found["me"]["id"], "lab": found["project"]["id"]}


async def answers(plane: Plane, *moments: tuple[str, str, int]) -> list[uuid.UUID]:
    """Answers of a model at a moment with so many tokens, to prompts of 10; each took 100 ms for a token."""
    known = ids(plane)
    own = {"created_by": uuid.UUID(known["me"])}
    return await written(
        plane,
        *(
            measured(1.0, 100.0 * tokens, tokens, created_at=ms(at), model_id=uuid.UUID(known[model]), **own)
            for at, model, tokens in moments
        ),
    )


@on_both
async def test_usage_is_counted_in_the_callers_days(lab: Adaptive, plane: Plane) -> None:
    await answers(
        plane,
        ("2026-03-28T12:00:00Z", "one", 1),
        ("2026-03-28T23:00:00Z", "one", 2),  # midnight in Paris
        ("2026-03-29T21:59:59.999Z", "one", 4),  # the last moment of the short day
        ("2026-03-29T22:00:00Z", "one", 8),
        ("2026-03-31T22:00:00Z", "one", 16),  # after the end
        ("2026-03-29T12:00:00Z", "two", 32),
    )
    known = ids(plane)
    query = f"query ($f: UsageFilterInput!) {{ modelUsage(filter: $f) {{ bucketTs {TOKENS} }} }}"
    wanted = {"modelId": known["one"], "timerange": MARCH, "unit": "DAY", "timezone": PARIS}
    found = data(plane, query, {"f": wanted})["modelUsage"]
    days = ["2026-03-28T00:00+01:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00", "2026-03-31T00:00+02:00"]
    assert [item.pop("bucketTs") for item in found] == [ms(day) for day in days]
    assert found == [amount(10, 1, 1), amount(20, 6, 2), amount(10, 8, 1), amount(0, 0, 0)]
    whole = data(plane, query, {"f": {**wanted, "unit": "NO_GROUP_BY_DATE", "timerange": None}})["modelUsage"]
    assert [item.pop("bucketTs") for item in whole] == [ms("2026-03-28T12:00Z")]
    assert whole == [amount(50, 31, 5)]


@on_both
async def test_usage_by_everything(lab: Adaptive, plane: Plane) -> None:
    make_project(plane, "empty")
    await answers(
        plane,
        ("2026-03-28T12:00:00Z", "one", 1),
        ("2026-03-30T12:00:00Z", "two", 2),
        ("2026-03-30T13:00:00Z", "two", 2),
    )
    lab.interactions.create(messages=[{"role": "user", "content": "a"}], completion="b", model="one")
    known = ids(plane)
    query = f"""query ($p: UsagePerProjectFilterInput!, $u: UsagePerUserFilterInput!, $g: GlobalUsageFilterInput!) {{
      modelUsageByProject(filter: $p) {{ projectId {TOKENS} timeseries {{ interactions }} }}
      modelUsageByUser(filter: $u) {{ userId {TOKENS} timeseries {{ interactions }} }}
      modelUsageDetailsByProject(filter: $p) {{ project {{ key }} modelService {{ key }} {TOKENS} }}
      usageOptions(filter: {{}}) {{ users {{ id }} projects {{ key }} models {{ key }} }}
      globalUsage(filter: $g) {{
        total {{ {TOKENS} }} adaptiveModels {{ {TOKENS} }} externalModels {{ {TOKENS} }}
        byModel {{ model {{ key }} {TOKENS} timeseries {{ interactions }} }} }} }}"""

    def asked(**more: Any) -> dict[str, Any]:
        wanted = {"timerange": MARCH, "interval": "DAY", "timezone": PARIS, **more}
        return data(plane, query, {"p": wanted, "u": wanted, "g": wanted})

    def by_day(*counts: int) -> dict[str, list[dict[str, int]]]:
        return {"timeseries": [{"interactions": count} for count in counts]}

    found = asked()
    everything, one, two = amount(30, 5, 3), amount(10, 1, 1), amount(20, 4, 2)
    assert found == {
        "modelUsageByProject": [{"projectId": known["lab"], **everything, **by_day(1, 0, 2, 0)}],
        "modelUsageByUser": [{"userId": known["me"], **everything, **by_day(1, 0, 2, 0)}],
        "modelUsageDetailsByProject": [
            {"project": {"key": "lab"}, "modelService": {"key": key}, **used}
            for key, used in (("two", two), ("one", one))
        ],
        "usageOptions": {
            "users": [{"id": known["me"]}],
            "projects": [{"key": "lab"}],
            "models": [{"key": "one"}, {"key": "two"}],
        },
        "globalUsage": {
            "total": everything,
            "adaptiveModels": amount(0, 0, 0),
            "externalModels": everything,
            "byModel": [
                {"model": {"key": "two"}, **two, **by_day(0, 0, 2, 0)},
                {"model": {"key": "one"}, **one, **by_day(1, 0, 0, 0)},
            ],
        },
    }
    for filtered in (
        {"modelIds": [known["one"]]},
        {"advancedFilter": {"model": {"eq": "one"}}},
        {"advancedFilter": {"not": {"model": {"in": ["two", "three"]}}}},
        {"advancedFilter": {"and": [{"project": {"eq": "lab"}}, {"model": {"neq": known["two"]}}]}},
        {"userIds": [known["me"]], "projectIds": [known["lab"]], "advancedFilter": {"or": [{"model": {"eq": "one"}}]}},
    ):
        assert asked(**filtered)["globalUsage"]["total"] == one, filtered
    for nothing in ({"userIds": []}, {"projectIds": [str(uuid.uuid4())]}, {"advancedFilter": {"or": []}}):
        assert asked(**nothing)["globalUsage"]["total"] == amount(0, 0, 0), nothing


@on_both
async def test_usage_of_others_is_not_shown(lab: Adaptive, plane: Plane) -> None:
    await answers(plane, ("2026-03-28T12:00:00Z", "one", 1))
    data(plane, 'mutation { createTeam(input: {name: "elsewhere", key: "elsewhere"}) { id } }')
    query = "mutation ($i: UserCreate!) { createUser(input: $i) { generatedApiKey } }"
    keys = {}
    for name, teams in (
        ("reader", [{"team": "elsewhere", "role": "read-only"}]),
        ("nobody", []),
        ("asker", [{"team": "default", "role": "inference"}]),
    ):
        wish = {"name": name, "userType": "SYSTEM", "teams": teams, "generateApiKey": True}
        keys[name] = data(plane, query, {"i": wish})["createUser"]["generatedApiKey"]
    usage = "{ globalUsage(filter: {interval: DAY}) { total { interactions } byModel { interactions } } }"
    found = data(plane, usage, api_key=keys["reader"])
    assert found == {"globalUsage": {"total": {"interactions": 0}, "byModel": []}}
    for name in ("nobody", "asker"):
        assert "lacks the permission 'interaction:read'" in refusal(plane, usage, api_key=keys[name])
    activity = '{ project(idOrKey: "lab") { activity { interactions { value } } } }'
    assert data(plane, activity, api_key=keys["asker"]) == {"project": {"activity": None}}
    assert data(plane, activity)["project"]["activity"] == {"interactions": {"value": 1}}


@on_both
async def test_scores_by_time(lab: Adaptive, plane: Plane) -> None:
    await answers(plane, ("2026-03-28T12:00:00Z", "one", 1), ("2026-03-30T12:00:00Z", "two", 3))
    query = """query ($t: TimeseriesInput!, $m: TimeseriesInput!, $r: TimeRange!) { project(idOrKey: "lab") {
      metric(metric: "latency") {
        timeseries(input: $t) { model { key } timeBuckets count values aggregation }
        byModel: timeseries(input: $m) { model { key } count values }
        scoreCount(timerange: $r) all: scoreCount comparisonCount
        trend(input: {timerange: $r}) { previous current trend }
        sums: trend(input: {timerange: $r, aggregation: SUM}) { previous current trend } } } }"""
    wish = {"interval": "DAY", "timerange": MARCH, "timezone": PARIS}
    later = {"from": "2026-03-30", "to": "2026-04-01"}
    found = data(plane, query, {"t": wish, "m": {**wish, "byModel": True, "aggregation": "COUNT"}, "r": later})[
        "project"
    ]["metric"]
    (series,) = found["timeseries"]
    assert series.pop("timeBuckets")[:2] == [ms("2026-03-28T00:00+01:00"), ms("2026-03-29T00:00+01:00")]
    values = [100.0, None, 300.0, None]
    assert series == {"model": None, "count": [1, 0, 1, 0], "values": values, "aggregation": "AVERAGE"}
    assert found["byModel"] == [
        {"model": {"key": "one"}, "count": [1, 0, 0, 0], "values": [1.0, 0.0, 0.0, 0.0]},
        {"model": {"key": "two"}, "count": [0, 0, 1, 0], "values": [0.0, 0.0, 1.0, 0.0]},
    ]
    assert (found["scoreCount"], found["all"], found["comparisonCount"]) == (1, 2, 0)
    trend = {"previous": 100.0, "current": 300.0, "trend": 2.0}
    assert found["trend"] == trend and found["sums"] == trend
    whole = data(plane, query, {"t": {"interval": "MILLENNIUM"}, "m": wish, "r": later})["project"]["metric"]
    assert whole["timeseries"][0]["values"] == [200.0]


@on_both
async def test_activity_of_projects_models_and_metrics(lab: Adaptive, plane: Plane) -> None:
    first, *_ = await answers(
        plane,
        ("2026-03-29T12:00:00Z", "one", 1),
        ("2026-03-30T12:00:00Z", "one", 1),
        ("2026-03-30T13:00:00Z", "one", 1),
        ("2026-03-30T14:00:00Z", "two", 1),
    )
    lab.feedback.log_metric(4, first, "stars")
    lab.feedback.log_preference(
        "stars",
        {"text": "b", "model": "one"},
        {"text": "c", "model": "two"},
        messages=[{"role": "user", "content": "a"}],
    )
    query = """query ($r: TimeRange!) { project(idOrKey: "lab") {
      activity(timerange: $r) { interactions { value perSecond trend } scores { value trend } }
      ever: activity { interactions { value perSecond trend } scores { value trend } }
      modelService(idOrKey: "one") {
        activity(timerange: $r) { interactions { value trend } scores { value } }
        metrics { key scoreCount comparisonCount } } }
      model(idOrKey: "two") {
        activity(timerange: $r) { interactions { value trend } scores { value } }
        metrics { key scoreCount comparisonCount } }
      metric(projectIdOrKey: "lab", metricIdOrKey: "stars") { activity { scores { value trend } } } }"""
    found = data(plane, query, {"r": {"from": "2026-03-30", "to": "2026-03-31"}})
    project = found["project"]
    assert project["activity"] == {
        "interactions": {"value": 3, "perSecond": pytest.approx(3 / 86_400), "trend": 2.0},
        "scores": {"value": 0, "trend": None},
    }
    assert project["ever"] == {
        "interactions": {"value": 6, "perSecond": None, "trend": None},
        "scores": {"value": 1, "trend": None},
    }
    one = project["modelService"]
    assert one["activity"] == {"interactions": {"value": 2, "trend": 1.0}, "scores": {"value": 0}}
    counts = {item["key"]: (item["scoreCount"], item["comparisonCount"]) for item in one["metrics"]}
    assert counts["stars"] == (1, 1) and counts["latency"] == (3, 0)
    two = found["model"]
    assert two["activity"] == {"interactions": {"value": 1, "trend": None}, "scores": {"value": 0}}
    counts = {item["key"]: (item["scoreCount"], item["comparisonCount"]) for item in two["metrics"]}
    assert counts["stars"] == (0, 1) and counts["latency"] == (1, 0)
    assert found["metric"] == {"activity": {"scores": {"value": 1, "trend": None}}}


async def test_what_cannot_be_charted_is_refused(lab: Adaptive, plane: Plane) -> None:
    await answers(plane, ("2026-03-29T12:00:00Z", "one", 1))

    def refused(**more: Any) -> str:
        query = "query ($f: GlobalUsageFilterInput!) { globalUsage(filter: $f) { total { interactions } } }"
        return refusal(plane, query, {"f": {"interval": "DAY", **more}})

    assert "give a name such as 'Europe/Paris'" in refused(timezone="Mars/Crater")
    assert "give a name such as 'Europe/Paris'" in refused(timezone="../../etc/passwd")
    assert "swap the two" in refused(timerange={"from": "2026-03-30", "to": "2026-03-29"})
    assert "more than 10000" in refused(interval="HOUR", timerange={"from": "2020-01-01", "to": "2026-01-01"})
    assert "beyond the calendar" in refused(timerange={"from": 0, "to": 2**62})
    deep: dict[str, Any] = {"or": [{"model": {"eq": "x"}}] * 600}
    assert "at most 500 parts" in refused(advancedFilter=deep)
    missing = "query ($f: UsageFilterInput!) { modelUsage(filter: $f) { bucketTs } }"
    assert "does not exist" in refusal(plane, missing, {"f": {"modelId": str(uuid.uuid4()), "unit": "DAY"}})


async def test_an_index_answers_alone(lab: Adaptive, plane: Plane) -> None:
    """However long the chats are: what is read of a million answers must not be more than what is added up."""
    await answers(plane, ("2026-03-29T12:00:00Z", "one", 1))
    known, asked = ids(plane), list[tuple[str, Any]]()
    database = Database(plane.config.database_address)
    event.listen(
        database.engine.sync_engine, "before_cursor_execute", lambda *said: asked.append((str(said[2]), said[3]))
    )
    async with database.read() as session:
        admin = (await session.execute(select(User))).scalars().first()
        metric = (await session.execute(select(Metric.id).where(Metric.key == "latency"))).scalar_one()
    assert admin is not None
    caller, writer = Caller(admin.id, admin.email), InteractionWriter(database)
    usage, scores = UsageFigures(database, writer), ScoreFigures(database, writer)
    activity = ActivityFigures(database, writer)
    span, model = Span(0, ms("2027-01-01T00:00Z")), uuid.UUID(known["one"])
    asked.clear()
    wish = UsageWish(span=span, unit=MONTH, timezone=PARIS)
    await usage.of_model(caller, model, wish)
    await usage.by_service(caller, wish)
    await usage.options(caller, span)
    for key in ("model", "project", "user"):
        assert (await usage.by(caller, key, wish)).totals()
    await scores.series(caller, Subject(metric), SeriesWish(span=span, unit=WEEK))
    await scores.count(caller, Subject(metric), span)
    await activity.of(caller, span, project_id=uuid.UUID(known["lab"]))
    plans = []
    async with database.engine.connect() as connection:
        for statement, values in [*asked]:
            rows = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)).all()
            plans += [str(row[3]) for row in rows if "completions" in str(row[3]) or "direct_scores" in str(row[3])]
    await database.close()
    assert len(plans) >= 8
    assert [plan for plan in plans if "COVERING INDEX" not in plan or plan.startswith("SCAN")] == []


@pytest.mark.parametrize(
    ("unit", "since", "until", "timezone", "starts"),
    [
        (HOUR, "2026-03-29T00:30Z", "2026-03-29T02:00Z", PARIS, ["2026-03-29T00:00Z", "2026-03-29T01:00Z"]),
        (HOUR, "2026-01-01T00:10Z", "2026-01-01T00:40Z", "Asia/Kolkata", ["2025-12-31T23:30Z", "2026-01-01T00:30Z"]),
        (WEEK, "2026-11-22T12:00Z", "2026-11-23T12:00Z", None, ["2026-11-16T00:00Z", "2026-11-23T00:00Z"]),
        (MONTH, "2025-12-31T12:00Z", "2026-02-01T00:00Z", None, ["2025-12-01T00:00Z", "2026-01-01T00:00Z"]),
        (QUARTER, "2026-02-01T00:00Z", "2026-04-02T00:00Z", None, ["2026-01-01T00:00Z", "2026-04-01T00:00Z"]),
        (YEAR, "2026-06-01T00:00Z", "2026-06-02T00:00Z", "America/New_York", ["2026-01-01T05:00Z"]),
        (DAY, "2026-11-01T05:00Z", "2026-11-02T05:00Z", "America/New_York", ["2026-11-01T04:00Z"]),  # 25 hours
        (WHOLE, "2026-06-01T00:10Z", "2027-06-02T00:00Z", None, ["2026-06-01T00:10Z"]),
    ],
)
def test_units_of_the_calendar(unit: str, since: str, until: str, timezone: str | None, starts: list[str]) -> None:
    found = buckets_of(Span(ms(since), ms(until)), unit, timezone)
    assert found.starts == tuple(map(ms, starts))
