"""Several compute pools on one machine: the cores of a CPU, shared out as GPUs are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client import AddModelInput
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from harmonia.config.control import ControlConfig
from tests.integration.control.asking import data
from tests.integration.control.conftest import Plane

CORES = sorted(os.sched_getaffinity(0))[:2]
FIRST, SECOND = (f"cpu:{core}" for core in (CORES * 2)[:2])
WAITING = """
import asyncio
from harmonia.client.recipe import RecipeContext, recipe_main

@recipe_main
async def main(ctx: RecipeContext):
    print("waiting", flush=True)
    await asyncio.sleep(600)
"""
NUMBERS = "{ harmonyGroups { key gpuTotal gpuAllocated inferencePartitionSize gpuAllocations { name ranks } } }"
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="two devices need two cores")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """A pool for everything and one for serving alone."""
    pools = [{"key": "left", "devices": [FIRST]}, {"key": "right", "devices": [SECOND], "capabilities": ["INFERENCE"]}]
    with Plane(ControlConfig(data_dir=tmp_path / "data", compute={"pools": pools})) as plane:
        yield plane


@pytest.fixture
def sdk(plane: Plane, tiny: Path, tmp_path: Path) -> Iterator[Adaptive]:
    """With a project, a recipe and a model."""
    (tmp_path / "waiting.py").write_text(WAITING)
    with closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as sdk:
        sdk.projects.create("lab")
        sdk.set_default_project("lab")
        sdk.recipes.upload(str(tmp_path / "waiting.py"))
        sdk._gql_client.add_model(AddModelInput(path=str(tiny), name="Tiny", key="tiny"))
        yield sdk


def until(holds: Callable[[], Any]) -> None:
    give_up_at = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < give_up_at, "did not happen in time"
        time.sleep(0.1)


def held(plane: Plane, pool: str) -> tuple[int, int, list[str]]:
    """Devices in all, those that are held, and by whom."""
    groups = {group["key"]: group for group in data(plane, NUMBERS)["harmonyGroups"]}
    group = groups[pool]
    return group["gpuTotal"], group["gpuAllocated"], [item["name"] for item in group["gpuAllocations"]]


def workers(plane: Plane) -> list[list[int]]:
    """The cores on which workers that serve may run."""
    assert plane.services is not None
    pids = [status.pid for status in plane.services.serving.router.statuses() if status.pid is not None]
    return [psutil.Process(pid).cpu_affinity() for pid in pids]


def test_pools_say_what_they_have_and_who_holds_it(plane: Plane, sdk: Adaptive) -> None:
    found = {pool.key: pool for pool in sdk.compute_pools.list()}
    assert [item.value for item in found["left"].capabilities] == ["INFERENCE", "JOB"]
    assert [item.value for item in found["right"].capabilities] == ["INFERENCE"]
    assert held(plane, "left") == (1, 0, []) == held(plane, "right")
    sdk.models.deploy("tiny", wait=True, placement={"compute_pools": ["right"]})
    assert held(plane, "right") == (1, 1, ["tiny"])
    assert held(plane, "left") == (1, 0, [])
    assert workers(plane) == [CORES[1:]]
    asked = {"model": "lab/tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    headers = {"authorization": f"Bearer {plane.api_key}"}
    answer = httpx.post(f"{plane.url}/api/v1/chat/completions", json=asked, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    metrics = httpx.get(f"{plane.url}/metrics").text
    assert 'harmony_generation_requests_count{model="tiny",pool="right"' in metrics
    assert 'harmony_request_duration_s_count{model="lab/tiny",pool="right"} 1.0' in metrics
    first, second = sdk.jobs.run("waiting", 1), sdk.jobs.run("waiting", 1, compute_pool="left")
    until(lambda: held(plane, "left") == (1, 1, [f"job/{first.id}"]))
    until(lambda: "waits for 1 of the devices of pool left, held by job/" in log_of(plane, second.id))
    sdk.jobs.cancel(first.id)
    until(lambda: held(plane, "left") == (1, 1, [f"job/{second.id}"]))
    sdk.jobs.cancel(second.id)
    until(lambda: held(plane, "left") == (1, 0, []))
    for num_gpus, pool, says in (
        (2, "left", "numGpus is 2, and compute pool 'left' has 1 device"),
        (1, "right", "'right' is no compute pool for jobs; pools for them: left"),
        (1, "moon", "'moon' is no compute pool"),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=says):
            sdk.jobs.run("waiting", num_gpus, compute_pool=pool)


def log_of(plane: Plane, job_id: str) -> str:
    file = plane.config.folder / "jobs" / job_id / "log.txt"
    return file.read_text() if file.exists() else ""


def test_a_model_moves_and_doubles_while_it_serves(plane: Plane, sdk: Adaptive) -> None:
    assert plane.services is not None
    router = plane.services.serving.router
    sdk.models.deploy("tiny", wait=True, placement={"compute_pools": ["left"]})
    sdk.models.update("tiny", placement={"compute_pools": ["right"]})
    seen = set()

    def has_moved() -> bool:
        seen.add(router.serves("tiny"))
        return held(plane, "left")[1] == 0

    until(has_moved)
    assert seen == {True}
    assert held(plane, "right") == (1, 1, ["tiny"])
    sdk.models.update("tiny", placement={"compute_pools": ["left", "right"]})
    until(lambda: sorted(workers(plane)) == [CORES[:1], CORES[1:]])
    until(lambda: all(router.find(status.replica) for status in router.statuses()))
    assert sdk.models.get("tiny").online.value == "ONLINE"
    groups = {pool.key: pool.harmony_groups[0].online_models for pool in sdk.compute_pools.list()}
    assert {key: [model.key for model in models] for key, models in groups.items()} == {
        "left": ["tiny"],
        "right": ["tiny"],
    }
    sdk.models.terminate("tiny")
    until(lambda: held(plane, "left") == (1, 0, []) == held(plane, "right"))


def test_what_a_pool_is_not_for_is_refused(tmp_path: Path) -> None:
    pools = [{"key": "jobs", "devices": ["cpu"], "capabilities": ["JOB"]}]
    with (
        Plane(ControlConfig(data_dir=tmp_path, compute={"pools": pools})) as plane,
        closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as sdk,
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match="takes jobs only"):
            sdk.compute_pools.resize_inference_partition("jobs", 1)
        with pytest.raises(AdaptiveEntityNotFoundError):
            sdk.compute_pools.resize_inference_partition("default", 1)


def test_a_job_whose_pool_is_gone_after_a_restart_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    before = {"pools": [{"key": "left", "devices": [FIRST]}]}
    with (
        Plane(ControlConfig(data_dir=tmp_path, compute=before)) as plane,
        closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as sdk,
    ):
        sdk.projects.create("lab")
        sdk.recipes.upload(str(tmp_path / "waiting.py"), project="lab")
        job, api_key = sdk.jobs.run("waiting", 1, project="lab"), plane.api_key
    with (
        Plane(ControlConfig(data_dir=tmp_path)) as plane,
        closing(Adaptive(base_url=plane.url, api_key=api_key)) as sdk,
    ):
        assert [pool.key for pool in sdk.compute_pools.list()] == ["default"]
        until(lambda: sdk.jobs.get(job.id).status.value == "FAILED")
        assert "no compute pool 'left' takes jobs with 1 devices any more" in sdk.jobs.get(job.id).error
