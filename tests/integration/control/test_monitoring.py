"""Training runs that report through the published SDK, and reading what they reported."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.monitoring import Run, Table, init

from tests.integration.control.conftest import Plane, on_both

pytestmark = on_both

NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
RUNS = "query($p: IdOrKey!) { monitoringRuns(project: $p) { id name config status endedAt lastMetricAt } }"
LOGGED = """query($p: IdOrKey!, $r: [UUID!]!) {
  monitoringTables(project: $p, runIds: $r) { id name step columns rowCount }
  monitoringCategorical(project: $p, runIds: $r) { name step labels values series }
}"""


@pytest.fixture
def http(plane: Plane) -> Any:
    with httpx.Client(base_url=plane.url, headers={"Authorization": f"Bearer {plane.api_key}"}) as client:
        graphql(client, 'mutation { createProject(input: {name: "Lab", key: "lab"}) { id } }')
        yield client


def begin(plane: Plane, name: str, **settings: Any) -> Run:
    return init("lab", name, api_url=plane.url, api_key=plane.api_key, **settings)


def graphql(http: httpx.Client, query: str, **variables: Any) -> Any:
    answer = http.post("/api/graphql", json={"query": query, "operationName": None, "variables": variables}).json()
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def post(http: httpx.Client, run_id: str, what: str, body: Any) -> httpx.Response:
    return http.post(f"/api/v1/monitoring/monitoring_runs/{run_id}/{what}", json=body)


def curves(http: httpx.Client, run_id: str) -> dict[str, list[tuple[int, float]]]:
    answer = http.get(f"/api/v1/monitoring/monitoring_runs/{run_id}/metrics").json()["metrics"]
    return {name: [(step, value) for step, value, _ in points] for name, points in answer.items()}


def test_everything_that_a_run_logs_arrives(plane: Plane, http: httpx.Client) -> None:
    with begin(plane, "first", config={"lr": 0.1}) as run:
        for step in range(50):
            run.log({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step=step)
        table = Table(["prompt", "score"], [["a", 0.5], ["b", None]])
        run.log_table("samples", table, step=3)
        run.log_categorical("lengths", {"short": 3.0, "long": 1.0}, step=3)
    found = curves(http, run.id)
    assert found["train/loss"] == [(step, 1 / (step + 1)) for step in range(50)]
    assert len(found["train/lr"]) == 50
    (shown,) = graphql(http, RUNS, p="lab")["monitoringRuns"]
    assert (shown["name"], shown["config"], shown["status"]) == ("first", {"lr": 0.1}, "FINISHED")
    assert shown["endedAt"] >= shown["lastMetricAt"]
    logged = graphql(http, LOGGED, p="lab", r=[run.id])
    (table_shown,) = logged["monitoringTables"]
    assert (table_shown["rowCount"], table_shown["columns"]) == (2, [{"name": "prompt"}, {"name": "score"}])
    assert http.get(f"/api/v1/monitoring/tables/{table_shown['id']}").json()["data"] == [["a", 0.5], ["b", None]]
    (categorical,) = logged["monitoringCategorical"]
    assert categorical == {
        "name": "lengths",
        "step": 3,
        "labels": ["short", "long"],
        "values": [3.0, 1.0],
        "series": [],
    }


def test_large_tables_come_in_parts_and_are_whole(plane: Plane, http: httpx.Client) -> None:
    rows = [[index, f"row {index}"] for index in range(11_000)]
    with begin(plane, "large") as run:
        run.log_table("rows", Table(["index", "text"], rows))
    (table,) = graphql(http, LOGGED, p="lab", r=[run.id])["monitoringTables"]
    assert table["rowCount"] == 11_000
    assert http.get(f"/api/v1/monitoring/tables/{table['id']}").json()["data"] == rows


def test_a_table_is_replaced_or_goes_on(plane: Plane, http: httpx.Client) -> None:
    run = begin(plane, "tables")
    body = {"name": "t", "step": 0, "columns": [{"name": "a"}], "data": [[1]], "append": False}
    assert post(http, run.id, "tables", body).json()["row_count"] == 1
    assert post(http, run.id, "tables", {**body, "data": [[2], [3]], "append": True}).json()["row_count"] == 3
    assert post(http, run.id, "tables", {**body, "data": [[4]]}).json()["row_count"] == 1
    other = post(http, run.id, "tables", {**body, "columns": [{"name": "b"}], "append": True})
    assert other.status_code == 400
    assert "columns" in other.text
    assert post(http, run.id, "tables", {**body, "data": [[1, 2]]}).status_code == 400
    run.finish()


def test_a_name_is_taken_once_and_resumed_on_request(plane: Plane, http: httpx.Client) -> None:
    first = begin(plane, "again")
    first.finish("failed")
    with pytest.raises(RuntimeError, match="Failed to create run"):
        begin(plane, "again")
    second = begin(plane, "again", resume=True)
    assert second.id == first.id
    second.log({"loss": 1.0}, step=1)
    second.finish()
    assert curves(http, first.id) == {"loss": [(1, 1.0)]}
    assert graphql(http, RUNS, p="lab")["monitoringRuns"][0]["status"] == "FINISHED"
    late = post(http, first.id, "metrics", {"metrics": [{"name": "a", "value": 1, "step": 1, "timestamp": NOW}]})
    assert late.status_code == 400
    assert "resume" in late.text


def test_values_sent_twice_count_once(plane: Plane, http: httpx.Client) -> None:
    run = begin(plane, "twice")
    batch = {"metrics": [{"name": "loss", "value": 0.5, "step": step, "timestamp": NOW} for step in range(3)]}
    assert post(http, run.id, "metrics", batch).status_code == 204
    assert post(http, run.id, "metrics", batch).status_code == 204
    assert curves(http, run.id)["loss"] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    run.finish()


def test_values_that_are_no_numbers_are_refused(plane: Plane, http: httpx.Client) -> None:
    run = begin(plane, "bad")
    for value in ("NaN", "Infinity", "-Infinity", "1e999", '"0.5"', "null", "true"):
        answer = http.post(
            f"/api/v1/monitoring/monitoring_runs/{run.id}/metrics",
            content=f'{{"metrics": [{{"name": "loss", "value": {value}, "step": 1, "timestamp": "{NOW}"}}]}}',
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 400, value
        assert "NaN or Infinity" in answer.text or value in ("1e999", '"0.5"', "null", "true")
    assert curves(http, run.id) == {}
    run.finish()


def test_mistakes_are_named(plane: Plane, http: httpx.Client) -> None:
    run = begin(plane, "mistakes")
    for what, body, told in (
        ("metrics", {"metrics": [{"name": "", "value": 1, "step": 1, "timestamp": NOW}]}, "name"),
        ("metrics", {"metrics": [{"name": "a", "value": 1, "step": -1, "timestamp": NOW}]}, "step"),
        ("metrics", {"metrics": [{"name": "a", "value": 1, "step": 2**60, "timestamp": NOW}]}, "step"),
        ("categorical", {"name": "c", "step": 0, "labels": ["a"], "values": [1, 2], "series": []}, "2 values"),
        ("tables", {"name": "t", "step": 0, "columns": [], "data": []}, "columns"),
    ):
        answer = post(http, run.id, what, body)
        assert answer.status_code == 400, body
        assert told in answer.text
    assert http.patch(f"/api/v1/monitoring/monitoring_runs/{run.id}", json={"status": "done"}).status_code == 400
    run.finish()


def test_runs_of_others_are_out_of_reach(plane: Plane, adaptive: Adaptive, http: httpx.Client) -> None:
    run = begin(plane, "mine")
    adaptive.teams.create("others", "Others")
    account = adaptive.users.create_service_account(name="bot", teams_with_role=[("others", "power_user")])
    batch = {"metrics": [{"name": "a", "value": 1, "step": 1, "timestamp": NOW}]}
    with httpx.Client(base_url=plane.url, headers={"Authorization": f"Bearer {account.api_key}"}) as other:
        assert post(other, run.id, "metrics", batch).status_code == 403
        assert other.get(f"/api/v1/monitoring/monitoring_runs/{run.id}/metrics").status_code == 403
        body = {"name": "x", "config": {}, "resume": False}
        assert other.post("/api/v1/monitoring/projects/lab/monitoring_runs", json=body).status_code == 403
    with httpx.Client(base_url=plane.url) as nobody:
        assert post(nobody, run.id, "metrics", batch).status_code == 401
    run.finish()


def test_deleted_runs_take_everything_with_them(plane: Plane, http: httpx.Client) -> None:
    run = begin(plane, "short")
    run.log({"loss": 1.0}, step=1)
    run.finish()
    query = "mutation($p: IdOrKey!, $r: [UUID!]!) { deleteMonitoringRuns(project: $p, runIds: $r) }"
    assert graphql(http, query, p="lab", r=[run.id]) == {"deleteMonitoringRuns": True}
    assert graphql(http, RUNS, p="lab") == {"monitoringRuns": []}
    answer = http.get(f"/api/v1/monitoring/monitoring_runs/{run.id}/metrics")
    assert "does not exist" in json.dumps(answer.json())
