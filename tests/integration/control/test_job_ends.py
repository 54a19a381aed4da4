"""How jobs end, and what stays of them: limits, cancellation, resumption, deletion."""

from __future__ import annotations

import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from adaptive_sdk import Adaptive

from harmonia.config.control import ControlConfig
from tests.integration.control.asking import data, make_project, refusal
from tests.integration.control.conftest import Plane
from tests.integration.control.test_jobs import FAILING, HEAD, LESSON, WAITING, ended, log_of, processes_of_jobs, until

GREEDY = (
    HEAD
    + """
import subprocess, sys

class Config(InputConfig):
    where: str

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    eat = "import time; eaten = [b'x' * 2**26 for _ in range(8)]; time.sleep(600)"
    if config.where == "here":
        exec(eat)
    several = [subprocess.Popen([sys.executable, "-c", eat.replace("8", "4")]) for _ in range(4)]
    await asyncio.sleep(600)
"""
)
FLEEING = (
    HEAD
    + """
import subprocess, sys

@recipe_main
async def main(ctx: RecipeContext):
    apart = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("apart:", apart.pid, flush=True)
    await asyncio.sleep(600)
"""
)
LEAVING = (
    HEAD
    + """
import subprocess, sys

@recipe_main
async def main(ctx: RecipeContext):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
"""
)
TALKING = (
    HEAD
    + """
@recipe_main
async def main(ctx: RecipeContext):
    print("x" * 100_000)
"""
)


ASKING = (
    HEAD
    + """
class Config(InputConfig):
    path: str

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    model = await ctx.client.model(config.path).spawn_inference("model")
    while True:
        await model.generate(StringThread([("user", "Hello")]))
        print("answered", flush=True)
"""
)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """With short logs and little patience with workers."""
    few = {"jobs": {"max_log_bytes": 50_000}, "http_client": {"max_silence_secs": 4}}
    with Plane(ControlConfig(data_dir=tmp_path_factory.mktemp("plane"), **few)) as plane:
        yield plane


@pytest.fixture(scope="module")
def sdk(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adaptive]:
    """With a project and recipes."""
    make_project(plane, "lab")
    folder = tmp_path_factory.mktemp("recipes")
    recipes = {"lesson": LESSON, "waiting": WAITING, "failing": FAILING, "greedy": GREEDY, "talking": TALKING}
    recipes |= {"fleeing": FLEEING, "leaving": LEAVING, "asking": ASKING}
    with closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as sdk:
        sdk.set_default_project("lab")
        for name, source in recipes.items():
            (folder / f"{name}.py").write_text(source)
            sdk.recipes.upload(str(folder / f"{name}.py"))
        yield sdk


def workers_of(job_id: str) -> list[psutil.Process]:
    """Of a job's processes those that run models."""
    found = []
    for process in processes_of_jobs():
        with suppress(psutil.NoSuchProcess):  # an earlier job's, which ends
            if process.environ().get("ADAPTIVE_JOB_ID") == job_id and "harmonia.worker" in process.cmdline():
                found.append(process)
    return found


@pytest.mark.parametrize("where", ["here", "in its children"])
def test_a_job_that_needs_too_much_memory_fails_with_the_name_of_the_limit(
    plane: Plane, sdk: Adaptive, where: str
) -> None:
    query = """mutation ($args: JSON!) { createJob(input: {
      recipe: "greedy", project: "lab", args: $args, numGpus: 0, maxRamGb: 0.4 }) { id } }"""
    job = ended(sdk, data(plane, query, {"args": {"where": where}})["createJob"]["id"])
    assert job.status.value == "FAILED"
    assert "limit of 0.4 GiB of memory (maxRamGb)" in job.error, job.error


def test_nothing_that_a_job_started_outlives_it(plane: Plane, sdk: Adaptive) -> None:
    job = sdk.jobs.run("fleeing", 0)
    until(sdk, job.id, lambda _: re.search(r"apart: \d+\n", log_of(plane, job.id)) is not None)
    found = re.search(r"apart: (\d+)\n", log_of(plane, job.id))
    assert found
    apart = psutil.Process(int(found[1]))
    sdk.jobs.cancel(job.id)
    until(sdk, job.id, lambda _: not apart.is_running() or apart.status() == psutil.STATUS_ZOMBIE)


def test_a_job_is_done_though_something_that_it_started_is_not(plane: Plane, sdk: Adaptive) -> None:
    job = ended(sdk, sdk.jobs.run("leaving", 0).id)
    assert job.status.value == "COMPLETED", job.error


def test_a_log_is_cut_where_it_is_too_long(plane: Plane, sdk: Adaptive) -> None:
    job = sdk.jobs.run("talking", 0)
    assert ended(sdk, job.id).status.value == "COMPLETED"
    log = log_of(plane, job.id)
    assert 50_000 <= len(log) < 51_000
    assert log.endswith("[the log ends here: it is as long as it may be, ADAPTIVE_JOBS__MAX_LOG_BYTES]\n")


def test_a_job_goes_on_though_its_log_takes_nothing_more(plane: Plane, sdk: Adaptive) -> None:
    before, job = sdk.jobs.run("waiting", 1), sdk.jobs.run("talking", 1)
    log = plane.config.folder / "jobs" / job.id / "log.txt"
    until(sdk, job.id, lambda _: log.exists())  # it says what the job waits for
    log.unlink()
    log.symlink_to("/dev/full")
    sdk.jobs.cancel(before.id)
    done = ended(sdk, job.id)
    assert done.status.value == "COMPLETED", done.error


def test_a_limit_may_be_larger_than_any_memory(plane: Plane, sdk: Adaptive) -> None:
    query = """mutation { createJob(input: {
      recipe: "leaving", project: "lab", args: {}, numGpus: 0, maxRamGb: 1e15 }) { id } }"""
    job = ended(sdk, data(plane, query)["createJob"]["id"])
    assert job.status.value == "COMPLETED", job.error


def test_what_is_deleted_leaves_nothing_behind(plane: Plane, sdk: Adaptive, tiny: Path) -> None:
    query = 'mutation ($path: String!) { addModel(input: {path: $path, name: "Tiny", key: "tiny"}) { id } }'
    data(plane, query, {"path": str(tiny)})
    job = ended(sdk, sdk.jobs.run("lesson", 1, args={"model": "tiny", "steps": 1}).id)
    assert job.status.value == "COMPLETED", (job.error, log_of(plane, job.id))
    folder, files = plane.config.folder / "jobs" / job.id, plane.config.folder / "files" / "data"
    until(sdk, job.id, lambda _: not (folder / "work").exists())
    assert [file.name for file in folder.iterdir()] == ["log.txt"]
    kept = {file for file in files.rglob("*") if file.is_file()}
    evaluation = next(item for item in job.artifacts if item.kind.value == "EVALUATION")
    assert sdk.jobs.delete(job.id)
    assert not folder.exists()
    assert len(kept) == 1 + sum(1 for file in files.rglob("*") if file.is_file())
    answer = httpx.get(
        f"{plane.url}/api/v1/artifacts/{evaluation.id}/download", headers={"Authorization": f"Bearer {plane.api_key}"}
    )
    assert answer.status_code == 404
    assert sdk.models.get("lessons/blue") is not None  # models stay


def test_only_jobs_that_came_to_nothing_are_resumed(plane: Plane, sdk: Adaptive) -> None:
    """And what they are resumed from stays until then."""
    report = (
        "mutation ($id: UUID!, $e: JobProgressEventInput!) { updateJobProgress(jobId: $id, event: $e) { success } }"
    )
    create = """mutation ($from: UUID!) { createJob(input: {
      recipe: "waiting", project: "lab", args: {}, numGpus: 1, resumeArtifactId: $from }) { id } }"""
    first, checkpoint = sdk.jobs.run("waiting", 1), str(uuid.uuid4())
    event = {"reportCheckpoint": {"artifactId": checkpoint, "step": 1, "completionPercentage": 10.0}}
    data(plane, report, {"id": first.id, "e": event})
    assert "jobs that failed or were canceled can be resumed" in refusal(plane, create, {"from": checkpoint})
    sdk.jobs.cancel(first.id)
    second = data(plane, create, {"from": checkpoint})["createJob"]["id"]
    assert "resumes this one" in refusal(plane, "mutation ($id: UUID!) { deleteJob(id: $id) }", {"id": first.id})
    until(sdk, second, lambda _: f"goes on from checkpoint {checkpoint}" in log_of(plane, second))
    sdk.jobs.cancel(second)
    assert sdk.jobs.delete(first.id)
    assert "is no checkpoint" in refusal(plane, create, {"from": checkpoint})


def test_a_job_can_be_canceled_whatever_it_does(plane: Plane, sdk: Adaptive) -> None:
    """While it waits, while its worker starts, when it is canceled already, but not when it has ended."""
    running, waiting = sdk.jobs.run("waiting", 1), sdk.jobs.run("waiting", 1)
    assert sdk.jobs.cancel(waiting.id).status.value == "CANCELED"
    until(sdk, running.id, lambda job: job.status.value == "RUNNING")
    assert sdk.jobs.cancel(running.id).status.value == "CANCELED"
    assert sdk.jobs.cancel(running.id).status.value == "CANCELED"
    failed = ended(sdk, sdk.jobs.run("failing", 1).id)
    assert failed.status.value == "FAILED"
    query = "mutation ($id: UUID!) { cancelJob(id: $id) { id } }"
    assert "ended already: FAILED" in refusal(plane, query, {"id": failed.id})
    folders = plane.config.folder / "jobs"
    for job in (running, waiting, failed):
        until(sdk, job.id, lambda job: not (folders / job.id / "work").exists())
        assert sdk.jobs.delete(job.id)
        assert not (folders / job.id).exists()


def test_a_job_whose_worker_hangs_fails_and_frees_its_device(plane: Plane, sdk: Adaptive, tiny: Path) -> None:
    job = sdk.jobs.run("asking", 0, args={"path": str(tiny)})
    until(sdk, job.id, lambda _: "answered" in log_of(plane, job.id))
    (worker,) = workers_of(job.id)
    worker.send_signal(signal.SIGSTOP)
    done = ended(sdk, job.id)
    assert done.status.value == "FAILED"
    assert "the worker has forgotten this client" in done.error, done.error
    assert not worker.is_running()
