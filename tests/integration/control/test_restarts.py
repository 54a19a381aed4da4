"""`harmonia up` is killed and stopped while jobs are submitted and run: none is lost, none runs twice."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client import AddModelInput

from harmonia.config.control import ControlConfig
from tests.integration.control.conftest import Plane
from tests.integration.control.starting import Started, started

DEADLINE_S = 240
COUNTING = """
import asyncio, os, uuid
from pathlib import Path
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    file: str
    steps: int = 10

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    ctx.job.register_stages(["count"])
    first = (ctx.checkpoint_restore_data or {"done": 0})["done"]
    for step in range(first, config.steps):
        with open(config.file, "a") as file:
            file.write(f"{os.getpid()} {step}\\n")
        ctx.job.report_checkpoint(str(uuid.uuid4()), step, 100 * step / config.steps, {}, {"done": step + 1}, "count")
        await asyncio.sleep(0.3)
"""
LESSON = """
import asyncio
from harmonia.client import StringThread
from harmonia.client.artifacts import save_with_artifact
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.trainers import SFT, RecipeCallback

class Config(InputConfig):
    model: Model

class Slow(RecipeCallback):
    async def callback(self, share):
        print("share", share, flush=True)
        await asyncio.sleep(0.3)
        return {}

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    ctx.job.register_stages(["learn"])
    model = await (await config.model.to_builder(ctx)).with_adapter(rank=2).spawn_train("pupil", 64)
    threads = [StringThread([("user", f"What is {n}?"), ("assistant", "Blue.")]) for n in range(12)]
    learn = ctx.job.stage_notifier("learn")
    await SFT(threads, model, stage_notifier=learn, samples_per_batch=1, checkpoint_frequency=0.9,
              callbacks=[Slow(0.01)]).run()
    await save_with_artifact(model, "lessons/blue", ctx=ctx)
"""


@contextmanager
def sdk_of(server: Started, api_key: str) -> Iterator[Adaptive]:
    """In the project `lab`."""
    sdk = Adaptive(base_url=server.url, api_key=api_key)
    sdk.set_default_project("lab")
    yield sdk
    sdk.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def prepare(sdk: Adaptive, tmp_path: Path, name: str, source: str) -> None:
    """The first start: a project and a recipe."""
    sdk.projects.create("lab")
    (tmp_path / f"{name}.py").write_text(source)
    sdk.recipes.upload(str(tmp_path / f"{name}.py"), project="lab")


def until(sdk: Adaptive, job_id: str, holds: Callable[[Any], bool]) -> Any:
    """The job once something holds of it."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not holds(job := sdk.jobs.get(job_id)):
        assert time.monotonic() < give_up_at, f"it never came: {job}"
        time.sleep(0.1)
    return job


def has_ended(job: Any) -> bool:
    return job.status.value not in ("PENDING", "RUNNING")


def log_of(server: Started, api_key: str, job_id: str) -> str:
    with server.client(api_key) as client:
        return client.get(f"/api/v1/jobs/{job_id}/logs").text


def submit(
    server: Started, api_key: str, accepted: list[tuple[str, Path]], files: Path, *devices: int
) -> threading.Thread:
    """Ask for jobs with so many devices, until the server is gone; those that it has accepted are noted."""

    def ask() -> None:
        query = "mutation ($input: JobInput!) { createJob(input: $input) { id } }"
        with server.client(api_key) as client:
            for num_gpus in devices:
                file = files / f"steps-{len(accepted)}"
                wanted = {"recipe": "counting", "project": "lab", "args": {"file": str(file)}, "numGpus": num_gpus}
                try:
                    answer = client.post("/api/graphql", json={"query": query, "variables": {"input": wanted}})
                except httpx.TransportError:
                    return
                accepted.append((answer.json()["data"]["createJob"]["id"], file))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def kill(server: Started) -> None:
    """With SIGKILL, and see that all processes that it started end."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.end(signal.SIGKILL)
    assert not psutil.wait_procs(children, 30)[1]


def check_steps(file: Path) -> None:
    """Each step was done: twice only when the server died before it knew of it, and by one process at a time."""
    words = [line.split() for line in file.read_text().splitlines()]
    steps, pids = [int(step) for _, step in words], [pid for pid, _ in words]
    assert sorted(set(steps)) == list(range(10))
    assert all(after in (before, before + 1) for before, after in pairwise(steps)), words
    assert len(set(pids)) == 1 + sum(one != other for one, other in pairwise(pids)), words


@pytest.mark.timeout(600)  # four starts of a server and its jobs: a machine that is busy takes long
def test_every_accepted_job_ends_well_however_often_the_server_is_killed(folder: Path, tmp_path: Path) -> None:
    chance, accepted, settings = random.Random(6), list[tuple[str, Path]](), {"ADAPTIVE_JOBS__MAX_RESTARTS": "9"}
    with started(folder, **settings) as server:
        api_key = server.api_key
        with sdk_of(server, api_key) as sdk:
            prepare(sdk, tmp_path, "counting", COUNTING)
            submit(server, api_key, accepted, tmp_path, 0, 1).join()
            until(sdk, accepted[0][0], lambda job: job.artifacts)
        kill(server)
    for _ in range(2):
        with started(folder, **settings) as server:
            asking = submit(server, api_key, accepted, tmp_path, 1)
            time.sleep(chance.uniform(0, 4))
            kill(server)
            asking.join()
    with started(folder, **settings) as server:
        with sdk_of(server, api_key) as sdk:
            for job_id, file in accepted:
                job = until(sdk, job_id, has_ended)
                assert job.status.value == "COMPLETED", (job.error, log_of(server, api_key, job_id))
                check_steps(file)
        told = log_of(server, api_key, accepted[0][0])
        assert "the server died while the job ran; it starts again (restart 1 of 9)" in told
        assert "goes on from checkpoint" in told
        assert server.end(signal.SIGTERM) == 0
    assert not list((folder / "jobs").glob("*/work"))


@pytest.mark.timeout(600)
def test_a_server_that_is_told_to_stop_lets_a_training_write_a_checkpoint(
    folder: Path, tmp_path: Path, tiny: Path
) -> None:
    with started(folder) as server:
        api_key = server.api_key
        with sdk_of(server, api_key) as sdk:
            prepare(sdk, tmp_path, "lesson", LESSON)
            sdk._gql_client.add_model(AddModelInput(path=str(tiny), name="Tiny", key="tiny"))
            job = sdk.jobs.run("lesson", 1, args={"model": "tiny"})
            until(sdk, job.id, lambda _: "share" in log_of(server, api_key, job.id))
            assert not sdk.jobs.get(job.id).artifacts
        assert server.end(signal.SIGTERM) == 0
    (saved,) = (folder / "models").glob("checkpoints%2F*")
    with started(folder) as server:
        with sdk_of(server, api_key) as sdk:
            ended = until(sdk, job.id, has_ended)
        told = log_of(server, api_key, job.id)
        assert ended.status.value == "COMPLETED", (ended.error, told)
        assert "the server stops; the job goes on after its next start" in told
        shares = [line for line in told.splitlines() if line.startswith("share ")]
        assert len(shares) == len(set(shares)) >= 12, told  # nothing was trained twice, and nothing was left out
        assert {item.kind.value for item in ended.artifacts} == {"CHECKPOINT", "MODEL"}
        assert server.end(signal.SIGTERM) == 0
    assert not saved.exists()
    assert not (folder / "jobs" / job.id / "work").exists()


def test_a_job_that_brings_the_server_down_again_and_again_fails(tmp_path: Path) -> None:
    """As the next server finds it: it runs, and ran so often already."""
    config = ControlConfig(data_dir=tmp_path, jobs={"max_restarts": 2})
    with Plane(config) as plane, closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as sdk:
        prepare(sdk, tmp_path, "counting", COUNTING)
        job = sdk.jobs.run("counting", 1, args={"file": str(tmp_path / "steps")}, project="lab")
        api_key = plane.api_key
    with sqlite3.connect(tmp_path / "harmonia.db") as database:
        assert database.execute("SELECT status, restarts FROM jobs").fetchall() == [("PENDING", 0)]
        database.execute("UPDATE jobs SET status = 'RUNNING', restarts = 2")
    database.close()
    with Plane(config) as plane, closing(Adaptive(base_url=plane.url, api_key=api_key)) as sdk:
        failed = sdk.jobs.get(job.id)
        assert failed.status.value == "FAILED"
        assert "died 3 times" in failed.error
        assert "ADAPTIVE_JOBS__MAX_RESTARTS" in failed.error
        assert sdk.jobs.delete(job.id)
    assert not (tmp_path / "jobs" / job.id).exists()
