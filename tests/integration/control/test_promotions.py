"""Checkpoints of a training become models that outlive its job, through `harmonia.sdk` with a tiny real model."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import update

from harmonia.config.control import ControlConfig
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.sdk import Adaptive
from harmonia.sdk.operations.jobs import Artifact, Job
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job as JobRow
from tests.integration.control.asking import data
from tests.integration.control.conftest import Plane

T = TypeVar("T")

TIMEOUT_S = 120
LESSON = """
import asyncio
from harmonia.client import StringThread
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.trainers import SFT

class Config(InputConfig):
    model: Model

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    ctx.job.register_stages(["learn"])
    model = await (await config.model.to_builder(ctx)).with_adapter(rank=2).spawn_train("pupil", 64)
    threads = [StringThread([("user", f"What is {n}?"), ("assistant", "Blue.")]) for n in range(4)]
    learn = ctx.job.stage_notifier("learn")
    await SFT(threads, model, stage_notifier=learn, samples_per_batch=1, checkpoint_frequency=0.5).run()
    await asyncio.sleep(600)
"""


def checkpoint_of(sdk: Adaptive, job: Job) -> Artifact:
    """The first that it makes."""
    made = until(lambda: sdk.artifacts.list(filter={"kinds": ["CHECKPOINT"], "job_id": job.id}))
    return made[0]


def until(look: Callable[[], T]) -> T:
    give_up_at = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        assert time.monotonic() < give_up_at
        time.sleep(0.2)
    return found


@pytest.mark.timeout(240)
async def test_a_checkpoint_becomes_a_model_that_outlives_its_job(tiny: Path, tmp_path: Path) -> None:
    config = ControlConfig(data_dir=tmp_path)
    with Plane(config) as plane:
        sdk = Adaptive(plane.url, plane.api_key, "lab")
        sdk.projects.create("lab")
        sdk.models.add(str(tiny), "tiny", "tiny")
        (tmp_path / "lesson.py").write_text(LESSON)
        sdk.recipes.upload(tmp_path / "lesson.py")
        training = sdk.jobs.run("lesson", 1, {"model": "tiny"})
        checkpoint = checkpoint_of(sdk, training)
        assert list(checkpoint.metadata["model_checkpoint_names"]) == ["tiny"]

        promotion = sdk.jobs.wait(sdk.artifacts.promote(checkpoint.id, {"tiny": "Half way"}).id, timeout_s=TIMEOUT_S)
        assert (promotion.status, promotion.progress, promotion.recipe) == ("COMPLETED", 1.0, None), promotion.error
        assert [artifact.uri for artifact in promotion.artifacts] == ["model_registry://half-way"]
        model = sdk.models.get("half-way")
        assert model is not None and model.is_adapter and model.backbone is not None
        assert (model.name, model.backbone.key) == ("Half way", "tiny")

        look_around(plane, promotion, training, checkpoint)
        refuse(sdk, checkpoint)
        sdk.jobs.cancel(training.id)
        sdk.jobs.delete(training.id)
        with pytest.raises(EntityNotFoundError):
            sdk.artifacts.promote(checkpoint.id, {"tiny": "Too late"})
        sdk.models.deploy("half-way", wait=True, timeout_s=TIMEOUT_S)
        answer = sdk.chat.create([{"role": "user", "content": "What is 3?"}], "half-way", max_tokens=4)
        assert answer.model == "lab/half-way"
        files = {path.name for path in (config.registry / "half-way").iterdir()}
        assert "adapter_model.safetensors" in files
        assert not any(name.startswith("optimizer") for name in files), "nobody goes on training from it"
        sdk.models.detach("half-way")
        sdk.models.delete("half-way")
        assert not (config.registry / "half-way").exists()
        until(lambda: not sdk.compute_pools.list()[0].harmony_groups[0].gpu_allocations)
        sdk.close()
    await goes_on_after_a_restart(config, plane.api_key, promotion)


def look_around(plane: Plane, promotion: Job, training: Job, checkpoint: Artifact) -> None:
    """What models, jobs and devices tell of each other meanwhile."""
    query = """query ($job: UUID!) {
      model(idOrKey: "half-way") { trainingRun { id } sourceCheckpoint { id } modelServices { key } }
      job(id: $job) { commonDetails { computePoolId } }
      computePools { id harmonyGroups { gpuAllocations { name job { id } } } } }"""
    found = data(plane, query, {"job": training.id})
    assert found["model"] == {
        "trainingRun": {"id": promotion.id},
        "sourceCheckpoint": {"id": checkpoint.id},
        "modelServices": [],
    }
    (pool,) = found["computePools"]
    assert found["job"]["commonDetails"] == {"computePoolId": pool["id"]}
    held = pool["harmonyGroups"][0]["gpuAllocations"]
    assert held == [{"name": f"job/{training.id}", "job": {"id": training.id}}]
    sized = "query ($f: ModelFilter!) { models(filter: $f) { key } }"
    bounds: list[tuple[dict[str, int], list[str]]] = [
        ({"gt": 0, "lt": 10**12, "neq": 1}, ["tiny", "half-way"]),
        ({"gte": 10**12}, []),
        ({"eq": 1}, []),
    ]
    for size, keys in bounds:
        assert data(plane, sized, {"f": {"size": size}})["models"] == [{"key": key} for key in keys]


def refuse(sdk: Adaptive, checkpoint: Artifact) -> None:
    for models, why in (
        ({}, "at least one model"),
        ({"other": "X"}, "it has 'tiny'"),
        ({"tiny": "Half way"}, "is taken"),
        ({"tiny": " "}, "name"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            sdk.artifacts.promote(checkpoint.id, models)
    with pytest.raises(EntityNotFoundError):
        sdk.artifacts.promote(str(uuid.uuid4()), {"tiny": "X"})
    (made,) = sdk.artifacts.list(filter={"kinds": ["MODEL"]})
    with pytest.raises(InvalidRequestError, match="checkpoints become models"):
        sdk.artifacts.promote(made.id, {"tiny": "X"})


async def goes_on_after_a_restart(config: ControlConfig, api_key: str, promotion: Job) -> None:
    """As if the server had been killed before it was done: the checkpoint is gone by now, which the job tells."""
    database = Database(config.database_address)
    async with database.begin() as session:
        again = update(JobRow).where(JobRow.id == uuid.UUID(promotion.id))
        await session.execute(again.values(status="RUNNING", ended_at=None))
    await database.close()
    with Plane(config) as plane, Adaptive(plane.url, api_key, "lab") as sdk:
        failed = sdk.jobs.wait(promotion.id, timeout_s=TIMEOUT_S)
        assert failed.status == "FAILED" and "half-way" in (failed.error or ""), failed.error
        assert sdk.models.get("half-way") is None
