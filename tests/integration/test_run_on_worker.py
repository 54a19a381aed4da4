"""`harmonia run --worker`: the recipe runs here, on a worker that runs already and goes on running."""

import asyncio
import json
import os
import sys
from pathlib import Path

from harmonia.client import get_client
from harmonia.client.recipe import read_journal, read_metrics
from tests.unit.client.small_worker import SmallWorker

RECIPE = """
from harmonia.client import StringThread
from harmonia.client.recipe import RecipeContext, recipe_main
from harmonia.trainers import SFT, get_prod_logger

@recipe_main
async def main(ctx: RecipeContext):
    threads = [StringThread([("user", "2 + 2?"), ("assistant", str(n))]) for n in range(6)]
    model = await ctx.client.model("tiny").with_adapter().spawn_train("pupil", 64)
    stage = ctx.job.stage_notifier("Lesson")
    await SFT(threads, model, get_prod_logger(ctx), stage, samples_per_batch=2).run()
"""


async def harmonia(folder: Path, *argv: str) -> tuple[int, str]:
    """Run a command; its exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harmonia.cli", *argv),
        cwd=folder,
        env=os.environ | {"HARMONIA_JOBS": str(folder / "jobs")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return await process.wait(), output.decode()


async def test_the_worker_is_used_and_left_running(tmp_path: Path) -> None:
    (tmp_path / "lesson.py").write_text(RECIPE)
    async with SmallWorker().serving() as worker:
        code, output = await harmonia(tmp_path, "run", "lesson.py", "--worker", worker.address, "--job-dir", "mine")
        assert code == 0, output
        async with await get_client(worker.address):
            pass
    job = read_journal(tmp_path / "mine")
    assert (job.state, job.stage("Lesson").processed) == ("COMPLETED", 6)
    steps = [record for record in read_metrics(tmp_path / "mine") if record.stage == "optim_step"]
    assert [record.metrics["model"] for record in steps] == ["pupil"] * 3
    assert "pupil: 3 steps" in output and "starting a worker" not in output


async def test_an_address_that_is_none_fails_the_job(tmp_path: Path) -> None:
    (tmp_path / "lesson.py").write_text(RECIPE)
    code, output = await harmonia(tmp_path, "run", "lesson.py", "--worker", "nonsense", "--job-dir", "mine")
    assert code == 1 and "no address of a worker" in " ".join(output.split()) and "Traceback" not in output
    assert json.loads((tmp_path / "mine" / "job.json").read_text())["state"] == "FAILED"
