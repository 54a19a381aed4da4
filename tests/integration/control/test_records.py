"""Jobs with graders outside: every record of their data sets has the metadata that those want."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.external import Response, RewardServer, ServerInfo
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from pydantic import BaseModel, Field

from harmonia.config.control import ControlConfig, Graders
from tests.integration.control.asking import data, make_project
from tests.integration.control.conftest import Plane

RECIPE = """
from harmonia.client.parameters import Dataset
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.graders import Grader

class Config(InputConfig):
    dataset: Dataset
    graders: list[Grader]

@recipe_main
async def main(config: Config, ctx: RecipeContext) -> None:
    pass
"""


class Wanted(BaseModel):
    answer: str
    level: int = Field(ge=0)


class Rewards(RewardServer[Wanted]):
    """The vendor's server."""

    def __init__(self, port: int) -> None:
        super().__init__(port, Wanted, blocking=False)

    async def score(self, request: Any) -> Response:
        return Response(reward=1.0, metadata={})

    async def info(self) -> ServerInfo:
        return ServerInfo(version="1", name="Answers", description="Whether answers are right")


@pytest.fixture
def rewards() -> Iterator[Rewards]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Rewards(free.getsockname()[1])
    while not server.server.started:
        time.sleep(0.01)
    yield server
    server.server.stop()


@pytest.fixture
def plane(tmp_path: Path, database_address: str) -> Iterator[Plane]:
    """One whose graders may be on this machine."""
    settings = Graders(allow_private=True)
    with Plane(ControlConfig(data_dir=tmp_path, db={"url": database_address}, graders=settings)) as plane:
        yield plane


def upload(adaptive: Adaptive, folder: Path, key: str, *metadata: dict[str, Any] | None) -> None:
    """A data set of one row for each."""
    messages = [{"role": "user", "content": "What is six times seven?"}]
    rows = [{"messages": messages} | ({} if each is None else {"metadata": each}) for each in metadata]
    (folder / key).write_text("\n\n".join(map(json.dumps, rows)))
    adaptive.datasets.upload(str(folder / key), key)


def jobs(plane: Plane) -> set[str]:
    """Their ids."""
    return {job["id"] for job in data(plane, "{ jobs(page: {first: 10}) { nodes { id } } }")["jobs"]["nodes"]}


def test_a_record_that_does_not_fit_ends_the_job_before_it_begins(
    plane: Plane, adaptive: Adaptive, rewards: Rewards, tmp_path: Path
) -> None:
    make_project(plane, "lab")
    adaptive.set_default_project("lab")
    adaptive.graders.create.external_endpoint(key="far", url=f"http://127.0.0.1:{rewards.server.config.port}")
    adaptive.graders.create.custom(key="near")
    (tmp_path / "learn.py").write_text(RECIPE)
    adaptive.recipes.upload(str(tmp_path / "learn.py"))
    right = {"answer": "42", "level": 1, "more": [1]}
    upload(adaptive, tmp_path, "right", right, right)
    upload(adaptive, tmp_path, "negative", *[right] * 3000, {"answer": "42", "level": -1})
    upload(adaptive, tmp_path, "bare", right, None)

    def run(dataset: str, *graders: str) -> Any:
        return adaptive.jobs.run("learn", 0, args={"dataset": dataset, "graders": list(graders)})

    for dataset, says in (
        ("negative", "dataset: row 3001 of data set 'negative': grader 'far' refuses its metadata: level: -1 is"),
        ("bare", "dataset: row 2 of data set 'bare': grader 'far' refuses its metadata: .*'answer' is missing"),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=says):
            run(dataset, "near", "far")
    assert jobs(plane) == set()
    made = {run("right", "far").id}
    rewards.server.stop()
    with pytest.raises(GraphQLClientGraphQLMultiError, match="grader 'far': it does not tell what it wants"):
        run("right", "far")
    assert jobs(plane) == made
