"""Jobs through the published SDK: asked for, run with a real worker and a tiny model, canceled, failed, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from harmonia.client import get_client
from harmonia.errors import PermissionDeniedError, UnknownModelError
from tests.integration.control.asking import ask, data, make_project, refusal
from tests.integration.control.conftest import Plane, on_both

TIMEOUT_S = 120
HEAD = """
import asyncio
from harmonia.client import StringThread
from harmonia.client.artifacts import CustomArtifact, EvaluationArtifact, save_with_artifact
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
"""
LESSON = (
    HEAD
    + """
class Config(InputConfig):
    model: Model
    steps: int = 3

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    ctx.job.register_stages(["learn", "judge"])
    learn, judge = ctx.job.stage_notifier("learn"), ctx.job.stage_notifier("judge")
    model = await (await config.model.to_builder(ctx)).with_adapter(rank=2).spawn_train("pupil", 64)
    thread = StringThread([("user", "What is blue?"), ("assistant", "The sky.")])
    for step in range(config.steps):
        await model.train_language_modelling(thread)
        await model.optim_step(0.01)
        learn.report_progress(config.steps, step + 1, monitoring_link="https://curves.example")
        print("step", step, flush=True)
    ctx.job.report_checkpoint(str(__import__("uuid").uuid4()), 3, 100.0, {}, {"seen": 3}, "learn")
    await save_with_artifact(model, "lessons/blue", ctx=ctx)
    grade = Grade(value=0.5, grader_key="tone", reasoning="so so")
    sample = EvalSample(EvalSampleInteraction(thread, "tiny"), [grade], "rows")
    EvaluationArtifact("grades", ctx).add_samples([sample, sample])
    judge.report_progress(1, 1)
"""
)
WAITING = (
    HEAD
    + """
@recipe_main
async def main(ctx: RecipeContext):
    ctx.job.register_stages(["wait"])
    ctx.job.stage_notifier("wait").report_progress(10, 1)
    print("waiting", flush=True)
    await asyncio.sleep(600)
"""
)
FAILING = (
    HEAD
    + """
@recipe_main
async def main(ctx: RecipeContext):
    def inner():
        raise ValueError("the moon is full")
    inner()
"""
)


@pytest.fixture
def sdk(plane: Plane, adaptive: Adaptive, tmp_path: Path) -> Adaptive:
    """With a project and recipes."""
    make_project(plane, "lab")
    adaptive.set_default_project("lab")
    for name, source in (("lesson", LESSON), ("waiting", WAITING), ("failing", FAILING)):
        (tmp_path / f"{name}.py").write_text(source)
        adaptive.recipes.upload(str(tmp_path / f"{name}.py"))
    return adaptive


def ended(sdk: Adaptive, job_id: str) -> Any:
    """The job once it has ended."""
    return until(sdk, job_id, lambda job: job.status.value not in ("PENDING", "RUNNING"))


def until(sdk: Adaptive, job_id: str, holds: Any) -> Any:
    """The job once something holds of it."""
    give_up = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up:
        job = sdk.jobs.get(job_id)
        if job is not None and holds(job):
            return job
        time.sleep(0.2)
    raise AssertionError(f"it never came: {job}")


def processes_of_jobs(parent: int | None = None) -> list[psutil.Process]:
    """Recipes and workers that a control plane has started."""
    modules = ("harmonia.client.recipe", "harmonia.worker")
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process] if any(module in process.cmdline() for module in modules) else []
    return found


def log_of(plane: Plane, job_id: str) -> str:
    """What the job wrote."""
    answer = httpx.get(f"{plane.url}/api/v1/jobs/{job_id}/logs", headers={"Authorization": f"Bearer {plane.api_key}"})
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f"attachment; filename*=utf-8''{job_id}.log"
    return answer.text


def test_a_recipe_trains_a_model_and_tells_of_it(plane: Plane, sdk: Adaptive, tiny: Path) -> None:
    query = 'mutation ($path: String!) { addModel(input: {path: $path, name: "Tiny", key: "tiny"}) { id } }'
    data(plane, query, {"path": str(tiny)})
    query = 'mutation { addModelsToProject(input: {project: "lab", models: ["tiny"]}) { __typename } }'
    data(plane, query)
    made = sdk.jobs.run("lesson", 1, args={"model": "tiny", "steps": 3}, name="First")
    assert (made.name, made.recipe.key, made.project.key) == ("First", "lesson", "lab")
    job = ended(sdk, made.id)
    log = log_of(plane, made.id)
    assert job.status.value == "COMPLETED", (job.error, log)
    assert job.progress == 1.0 and job.duration_ms > 0 and job.error is None
    learn, judge = job.stages
    assert (learn.name, learn.status.value, learn.info.processed_num_samples) == ("learn", "DONE", 3)
    assert learn.info.monitoring_link == "https://curves.example" and judge.status.value == "DONE"
    assert "step 2" in log and plane.api_key not in log
    kinds = {artifact.kind.value: artifact for artifact in job.artifacts}
    assert kinds["MODEL"].uri == "model_registry://lessons/blue" and kinds["MODEL"].status.value == "READY"
    assert kinds["CHECKPOINT"].metadata["user_data"] == {"seen": 3}
    assert sdk.models.get("lessons/blue").is_adapter
    (result,) = kinds["EVALUATION"].byproducts.eval_results
    assert (result.mean, result.stddev, result.count, result.metric.key) == (0.5, 0.0, 2, "tone")
    assert result.model_service.key == "tiny"
    answer = httpx.get(
        f"{plane.url}/api/v1/artifacts/{kinds['EVALUATION'].id}/download",
        headers={"Authorization": f"Bearer {plane.api_key}"},
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    content = answer.text
    assert len(content.splitlines()) == 2 and json.loads(content.splitlines()[0])["grades"][0]["value"] == 0.5


def test_the_built_in_recipe_learns_from_an_uploaded_data_set(
    plane: Plane, adaptive: Adaptive, tiny: Path, tmp_path: Path
) -> None:
    make_project(plane, "lab")
    adaptive.set_default_project("lab")
    query = 'mutation ($path: String!) { addModel(input: {path: $path, name: "Tiny", key: "tiny"}) { id } }'
    data(plane, query, {"path": str(tiny)})
    rows = [{"messages": [{"role": "user", "content": f"What is {n}?"}], "completion": "Blue."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    adaptive.datasets.upload(str(tmp_path / "rows.jsonl"), "rows")
    args = {"model_to_train": "tiny", "dataset": "rows", "output_model_key": "blue", "max_sequence_length": 256}
    made = adaptive.jobs.run("sft", 1, args={**args, "samples_per_batch": 4})
    job = ended(adaptive, made.id)
    assert job.status.value == "COMPLETED", (job.error, log_of(plane, made.id))
    assert job.recipe.builtin and job.stages[0].name == "Training" and job.stages[0].info.total_num_samples
    uris = {artifact.kind.value: artifact.uri for artifact in job.artifacts}
    assert uris == {"CHECKPOINT": None, "MODEL": "model_registry://blue"}
    assert adaptive.models.get("blue").is_adapter


def test_bad_arguments_are_refused_before_anything_starts(plane: Plane, sdk: Adaptive) -> None:
    for args, why in (
        ({}, "model: missing"),
        ({"model": "x", "steps": "many"}, "steps: Input should be a valid integer"),
        ({"model": "x", "stepps": 3}, "did you mean 'steps'"),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=why):
            sdk.jobs.run("lesson", 1, args=args)
    for gpus, why in ((2, "numGpus is 2, and compute pool 'default' has 1 device"), (-1, "at least 0")):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=why):
            sdk.jobs.run("waiting", gpus)
    with pytest.raises(AdaptiveEntityNotFoundError, match="'nowhere' does not exist"):
        sdk.jobs.run("nowhere", 1)
    with pytest.raises(GraphQLClientGraphQLMultiError, match="no compute pool"):
        sdk.jobs.run("waiting", 1, compute_pool="moon")
    assert data(plane, "{ jobs(page: {}) { totalCount } }")["jobs"]["totalCount"] == 0


@on_both
def test_jobs_wait_for_the_device_which_canceling_frees(plane: Plane, sdk: Adaptive) -> None:
    others = set(processes_of_jobs())  # workers of other tests in this process
    first = sdk.jobs.run("waiting", 1)
    second = sdk.jobs.run("failing", 1)
    running = until(sdk, first.id, lambda job: job.stages and job.stages[0].info)
    assert running.status.value == "RUNNING" and running.progress == pytest.approx(0.1)
    assert sdk.jobs.get(second.id).status.value == "PENDING"
    refused = refusal(plane, "mutation ($id: UUID!) { deleteJob(id: $id) }", {"id": first.id})
    assert "cancel it before" in refused
    canceled = sdk.jobs.cancel(first.id)
    assert canceled.status.value == "CANCELED" and canceled.stages[0].status.value == "CANCELLED"
    failed = ended(sdk, second.id)
    assert failed.status.value == "FAILED"
    assert "ValueError: the moon is full" in failed.error and "in inner" in failed.error
    assert "/harmonia/client/" not in failed.error
    until(sdk, second.id, lambda _: set(processes_of_jobs()) <= others)
    page = data(plane, "{ jobs(page: {first: 1}) { totalCount pageInfo { hasNextPage endCursor } nodes { id } } }")[
        "jobs"
    ]
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"], page["nodes"][0]["id"]) == (2, True, second.id)
    rest = data(
        plane, "query ($c: String!) { jobs(page: {after: $c}) { nodes { id } } }", {"c": page["pageInfo"]["endCursor"]}
    )["jobs"]
    assert [node["id"] for node in rest["nodes"]] == [first.id]
    query = "query ($f: ListJobsFilterInput!) { jobs(page: {}, filter: $f) { nodes { id } } }"
    for wish in (
        {"status": ["FAILED"]},
        {"customRecipes": ["failing"], "project": "lab"},
        {"advancedFilter": {"not": {"customRecipe": {"eq": "waiting"}}}},
        {"advancedFilter": {"and": [{"status": "FAILED"}, {"createdBy": {"eq": "admin@example.com"}}]}},
    ):
        assert [node["id"] for node in data(plane, query, {"f": wish})["jobs"]["nodes"]] == [second.id], wish
    assert sdk.jobs.delete(second.id) and sdk.jobs.get(second.id) is None


async def keys_of_models(plane: Plane, job_id: str | None, api_key: str) -> str:
    """What a client finds behind the gateway: a worker that knows no model 'nothing'."""
    address = f"ws{plane.url.removeprefix('http')}/api/v1/ws"
    async with await get_client(address, num_gpus=1, api_key=api_key, job_id=job_id) as client:
        with pytest.raises(UnknownModelError) as error:
            await client.describe("model_registry://nothing")
        return error.value.message


def test_only_the_job_and_its_creator_report_on_it_and_reach_its_worker(plane: Plane, sdk: Adaptive) -> None:
    job = sdk.jobs.run("waiting", 1)
    until(sdk, job.id, lambda found: found.stages)
    sdk.teams.create("others", "Others")
    account = sdk.users.create_service_account(name="other", teams_with_role=[("admin", "admin")])
    report = (
        "mutation ($id: UUID!, $e: JobProgressEventInput!) { updateJobProgress(jobId: $id, event: $e) { success } }"
    )
    assert "nothing" in asyncio.run(keys_of_models(plane, job.id, plane.api_key))
    for job_id, api_key, says in (
        (job.id, account.api_key, "403; only job .* may use its worker"),
        (job.id, "wrong", "401; .*key"),
        (None, plane.api_key, "403; name the job"),
        ("x", plane.api_key, "403; name the job"),
        (str(uuid.uuid4()), plane.api_key, "404; .*does not exist"),
    ):
        with pytest.raises(PermissionDeniedError, match=says):
            asyncio.run(keys_of_models(plane, job_id, api_key))
    beat = {"id": job.id, "e": {"heartbeat": {}}}
    assert "only job" in refusal(plane, report, beat, account.api_key)
    assert data(plane, report, beat)["updateJobProgress"]["success"]
    assert "exactly one thing" in refusal(plane, report, {"id": job.id, "e": {}})
    progress = {"updateProgress": {"stageKey": "nowhere", "info": {"train": {}}}}
    assert "no stage 'nowhere'" in refusal(plane, report, {"id": job.id, "e": progress})
    sdk.jobs.cancel(job.id)
    assert "ended already" in refusal(plane, report, beat)
    assert "does not exist" in refusal(plane, report, {"id": str(uuid.uuid4()), "e": {"heartbeat": {}}})


def test_limits_end_a_job(plane: Plane, sdk: Adaptive) -> None:
    query = """mutation { createJob(input: {
      recipe: "waiting", project: "lab", args: {}, numGpus: 0, maxDurationSecs: 3, name: "short" }) { id } }"""
    job = ended(sdk, data(plane, query)["createJob"]["id"])
    assert job.status.value == "FAILED" and "longer than 3 s" in job.error
    refused = ask(plane, query.replace("maxDurationSecs: 3", 'imageTag: "x"'))["errors"][0]["message"]
    assert "imageTag" in refused
