"""What this server measures of its answers."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select

from harmonia.server.db.database import Database
from harmonia.server.db.metrics import DirectScore
from harmonia.server.db.projects import Project
from harmonia.server.services.interactions.interaction import Interaction
from harmonia.server.services.interactions.writer import InteractionWriter
from tests.integration.control.asking import data, make_project, refusal
from tests.integration.control.conftest import Plane, on_both

pytestmark = on_both

METRICS = """{ project(idOrKey: "lab") {
  metrics(filter: {categories: [SYSTEM]}) { key kind scoringType unit hasDirectScores } } }"""


async def written(plane: Plane, *items: dict[str, Any]) -> list[uuid.UUID]:
    """Interactions of the project, as answering writes them."""
    database = Database(plane.config.database_address)
    async with database.read() as session:
        project_id = (await session.execute(select(Project.id).where(Project.key == "lab"))).scalar_one()
    writer = InteractionWriter(database)
    writer.start()
    message = {"role": "user", "content": "ask"}
    recorded = [
        await writer.record(Interaction(project_id=project_id, messages=[message], completion="answer", **item))
        for item in items
    ]
    await writer.close()
    assert writer.refused == 0
    await database.close()
    return recorded


def measured(ttft_ms: float, total_ms: float, tokens: int, **more: Any) -> dict[str, Any]:
    timings = {"queue_ms": 0.1, "ttft_ms": ttft_ms, "total_ms": total_ms}
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    return {"timings": timings, "usage": usage, "model_key": "tiny", **more}


async def test_answers_are_measured_without_anybody_asking(plane: Plane) -> None:
    make_project(plane, "lab")
    first, *_ = await written(
        plane, measured(10.0, 100.0, 5), measured(30.0, 200.0, 7), measured(1.0, 1.0, 1, source="OFFLINE")
    )
    metrics = {item.pop("key"): item for item in data(plane, METRICS)["project"]["metrics"]}
    common = {"kind": "SCALAR", "scoringType": "LOWER_IS_BETTER", "hasDirectScores": True}
    assert metrics == {
        "ttft": {**common, "unit": "ms"},
        "latency": {**common, "unit": "ms"},
        "prompt_tokens": {**common, "unit": "tokens"},
        "completion_tokens": {**common, "unit": "tokens"},
    }
    groups = data(
        plane,
        """{ completionsGrouped(filter: {project: "lab"}, groupBy: MODEL, page: {first: 5}) {
          nodes { key directScoresStats { metric { key } average scores } } } }""",
    )["completionsGrouped"]["nodes"]
    stats = {item["metric"]["key"]: (item["average"], item["scores"]) for item in groups[0]["directScoresStats"]}
    assert stats == {
        "ttft": (20.0, 2),
        "latency": (150.0, 2),
        "prompt_tokens": (10.0, 2),
        "completion_tokens": (6.0, 2),
    }
    # Feedback is what others say.
    query = 'query ($id: UUID!) { completion(project: "lab", id: $id) { directScores { value } } }'
    assert data(plane, query, {"id": str(first)})["completion"]["directScores"] == []


async def test_nobody_writes_into_them(plane: Plane) -> None:
    make_project(plane, "lab")
    (first,) = await written(plane, measured(10.0, 100.0, 5))
    mutation = (
        """mutation ($id: UUID!) { addDirectScore(completionId: $id, metricId: "ttft", input: {value: 1}) { id } }"""
    )
    assert "measured by this server" in refusal(plane, mutation, {"id": str(first)})


async def test_what_somebody_deleted_or_named_so_stays_theirs(plane: Plane) -> None:
    make_project(plane, "lab")
    mutation = (
        """mutation { createMetric(project: "lab", input: {name: "Latency", key: "latency", kind: SCALAR}) { id } }"""
    )
    own = data(plane, mutation)["createMetric"]["id"]
    await written(plane, measured(10.0, 100.0, 5))
    shown = """{ project(idOrKey: "lab") { metrics(filter: {categories: [SYSTEM]}) { key } } }"""
    keys = {item["key"] for item in data(plane, shown)["project"]["metrics"]}
    assert keys == {"ttft", "prompt_tokens", "completion_tokens"}
    assert data(plane, 'mutation { deleteMetric(project: "lab", metric: "ttft") }') == {"deleteMetric": True}
    await written(plane, measured(20.0, 200.0, 5))
    assert sorted(item["key"] for item in data(plane, shown)["project"]["metrics"]) == [
        "completion_tokens",
        "prompt_tokens",
    ]
    database = Database(plane.config.database_address)
    async with database.read() as session:
        scores = select(DirectScore.id).where(DirectScore.metric_id == uuid.UUID(own))
        assert (await session.execute(scores)).first() is None
    await database.close()
