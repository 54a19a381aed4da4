"""`harmonia run` as a user has it: a process of its own, a real worker, a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harmonia.client.recipe import JobState, read_journal, read_metrics

TIMEOUT_S = 120
HEAD = "import asyncio, time\nfrom harmonia.client.recipe import InputConfig, RecipeContext, recipe_main\n"
LOOP = """
from harmonia.client import StringThread
from harmonia.client.parameters import Model

class Config(InputConfig):
    model: Model
    steps: int = 10_000

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    model = await (await config.model.to_builder(ctx)).with_adapter(rank=2).spawn_train("pupil", 64)
    print("sys.argv is not ours", flush=True)
    for step in range(config.steps):
        await model.train_language_modelling(StringThread([("user", "What is blue?"), ("assistant", "The sky.")]))
        await model.optim_step(0.01)
"""


class Run:
    """A `harmonia run` and everything that it prints."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self.folder = folder
        home = {"HARMONIA_JOBS": folder / "jobs", "HARMONIA_REGISTRY": folder / "registry", "TMPDIR": folder / "tmp"}
        (folder / "tmp").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "harmonia.cli", "run", "--threads", "1", *argv]
        environment = os.environ | {name: str(path) for name, path in home.items()} | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.output = ""

    def wait_for(self, text: str) -> None:
        """Read on until a line holds the text."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came:\n{self.output}")

    def wait(self) -> int:
        """Read to the end; the exit code."""
        assert self.process.stdout
        self.output += self.process.stdout.read()
        return self.process.wait(TIMEOUT_S)

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def job_folder(self) -> Path:
        """Of its job, which is the only one."""
        (file,) = (self.folder / "jobs").glob("*/job.json")
        return file.parent

    @property
    def job(self) -> JobState:
        """How its job stands."""
        return read_journal(self.job_folder)

    def saved(self) -> list[str]:
        """Everything in the registry, hidden names too."""
        registry = self.folder / "registry"
        return sorted(path.name for path in registry.iterdir()) if registry.is_dir() else []


@contextmanager
def started(folder: Path, *argv: str) -> Iterator[Run]:
    """A run that ends with the context at the latest."""
    run = Run(folder, *argv)
    guard = threading.Timer(TIMEOUT_S, run.process.kill)
    guard.start()
    try:
        yield run
    finally:
        guard.cancel()
        run.process.kill()
        run.process.wait()
        assert run.process.stdout
        run.process.stdout.close()


def finished(folder: Path, *argv: str) -> tuple[Run, int]:
    """A run to its end, and its exit code."""
    with started(folder, *argv) as run:
        return run, run.wait()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A small data set."""
    lines = [{"messages": [{"role": "user", "content": f"What is {n}?"}], "completion": "Blue."} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def test_sft_learns_validates_and_saves(tmp_path: Path, tiny: Path, rows: Path) -> None:
    too_long = {"messages": [{"role": "user", "content": "Why?"}], "completion": "Blue. " * 60}
    rows.write_text(f"{rows.read_text()}\n{json.dumps(too_long)}")
    config = {"model_to_train": str(tiny), "dataset": rows.name, "epochs": 9, "samples_per_batch": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--output-model-key", "lessons/blue", "--epochs", "3", "--learning-rate", "0.01", "--run-validation"]
    run, code = finished(tmp_path, "sft", *flags, "--config", "config.json", "--max-sequence-length", "256")
    assert code == 0, run.output
    job = run.job
    assert (job.state, job.recipe, job.config["epochs"], job.config["adapter"]) == ("COMPLETED", "sft", 3, True)
    stage = job.stage("Training")
    assert stage.processed == stage.total and stage.total
    logged = [record.metrics for record in read_metrics(run.job_folder) if record.stage != "optim_step"]
    train_records = [metrics for metrics in logged if "train/loss" in metrics]
    train = [metrics["train/loss"] for metrics in train_records]
    validation = [metrics["val/loss"] for metrics in logged if "val/loss" in metrics]
    assert train[-1] < train[0] / 2 and validation[-1] < validation[0] / 2
    assert all("train/gradient_norm" in metrics for metrics in train_records)
    assert (
        "lessons%2Fblue" in run.saved() and (tmp_path / "registry" / "lessons%2Fblue" / "adapter_config.json").exists()
    )
    assert (run.job_folder / "loss.png").stat().st_size > 1000
    assert re.search(r"completed after \d\d:\d\d", run.output) and "model_registry://lessons/blue" in run.output
    assert "tokens/s" in run.output and "━━ val/loss" in run.output
    trained, validated = (re.search(rf"  {what} (\S+) to (\S+)", run.output) for what in (".*loss", "val/loss"))
    # Both per token, so that they can be compared.
    assert trained and validated and abs(float(trained[1]) - float(validated[1])) < 1 and "per token" in trained.string
    assert f"serve it: harmonia serve {tiny} --adapter blue=model_registry://lessons/blue" in run.output
    assert run.saved() == ["lessons%2Fblue"]
    dropped = train_records[-1]["num_dropped_samples"]
    assert dropped >= 1 and f"{dropped} sample" in run.output and "the log says why" in run.output


def test_ctrl_c_cancels_and_leaves_nothing_half(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "lesson.py").write_text(HEAD + LOOP)
    with started(tmp_path, "lesson.py", "--", "--model", str(tiny)) as run:
        run.wait_for("pupil: step")
        workers = run.workers()
        assert workers
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130, run.output
    assert run.job.state == "CANCELED" and run.job.ended_at is not None
    assert "canceled after" in run.output and "Traceback" not in run.output
    assert read_metrics(run.job_folder) and (run.job_folder / "loss.png").exists()
    assert not psutil.wait_procs(workers, 30)[1]
    assert run.saved() == [] and not list((tmp_path / "tmp").glob("harmonia-*"))


def test_ctrl_c_during_a_save_leaves_whole_models_only(tmp_path: Path, tiny: Path) -> None:
    saves = (
        "    while True:\n        await model.save('pupil', inference_only=False)\n        print('saved', flush=True)\n"
    )
    source = LOOP.replace("    for step in range(config.steps):", saves + "    for step in ():")
    (tmp_path / "lesson.py").write_text(HEAD + source)
    with started(tmp_path, "lesson.py", "--", "--model", str(tiny)) as run:
        for _ in range(5):
            run.wait_for("saved")
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130, run.output
    assert run.saved() == ["pupil"]


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    stubborn = "@recipe_main\nasync def main(ctx: RecipeContext):\n    print('deaf', flush=True)\n    time.sleep(100)\n"
    (tmp_path / "lesson.py").write_text(HEAD + stubborn)
    with started(tmp_path, "lesson.py") as run:
        run.wait_for("deaf")
        workers = run.workers()
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGINT)
        # Two that arrive together are one to Python.
        while run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)
            with_patience(run)
        assert run.process.returncode == 130
    assert run.job.state == "CANCELED"
    assert not psutil.wait_procs(workers, 30)[1]


def with_patience(run: Run) -> None:
    """A moment in which it may end."""
    try:
        run.process.wait(0.5)
    except subprocess.TimeoutExpired:
        return


def test_a_canceled_job_is_resumed_at_its_checkpoint(tmp_path: Path, tiny: Path, rows: Path) -> None:
    flags = ["--model-to-train", str(tiny), "--dataset", rows.name, "--output-model-key", "late"]
    with started(tmp_path, "sft", "--", *flags, "--epochs", "60", "--samples-per-batch", "8") as run:
        run.wait_for(": step ")
        while not run.job.checkpoints:
            assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130, run.output
    before = run.job
    assert before.state == "CANCELED" and "late" not in run.saved()
    checkpoint = f"checkpoints%2F{before.job_id}%2Fcheckpoint-"
    assert [name.rstrip("0123456789") for name in run.saved()] == [checkpoint]
    short = re.search(r"continue: harmonia run --resume (\S+)", run.output)
    assert short and before.job_id.startswith(short[1])
    failed, code = finished(tmp_path, "--resume", short[1], "--samples-per-batch", "4")
    assert code == 1 and "differ" in failed.output and failed.job.config == before.config
    resumed, code = finished(tmp_path, "--resume", short[1])
    assert code == 0, resumed.output
    after = resumed.job
    assert (after.state, after.job_id, after.started_at) == ("COMPLETED", before.job_id, before.started_at)
    steps = [record.metrics["model"] for record in read_metrics(resumed.job_folder) if record.stage == "optim_step"]
    assert 180 <= len(steps) < 360 and resumed.saved() == ["late"] and len(set(steps)) == 1
    assert f"sft-{before.job_id[-6:]}: 180 steps" in resumed.output and " step 180," in resumed.output


def test_a_recipe_that_raises_keeps_what_it_made(tmp_path: Path, tiny: Path) -> None:
    failing = LOOP + "    await model.save('kept')\n    raise ValueError('boom')\n"
    (tmp_path / "lesson.py").write_text(HEAD + failing)
    run, code = finished(tmp_path, "lesson.py", "--", "--model", str(tiny), "--steps", "3")
    assert code == 1 and "ValueError: boom" in run.output and "harmonia/client" not in run.output
    assert run.job.state == "FAILED" and run.job.error is not None and run.job.error.message == "ValueError: boom"
    assert run.saved() == ["kept"] and len(read_metrics(run.job_folder)) == 3
    assert "sys.argv is not ours" in run.output and "pupil: 3 steps, loss" in run.output


def test_an_unknown_model_fails_before_anything_is_loaded(tmp_path: Path, rows: Path) -> None:
    flags = ["--model-to-train", "nobody", "--dataset", "missing.jsonl", "--output-model-key", "x"]
    run, code = finished(tmp_path, "sft", "--", *flags)
    text = " ".join(run.output.split())
    assert code == 1 and "Traceback" not in text
    assert "model_to_train: no model 'nobody'" in text and "dataset: cannot read the data set missing.jsonl" in text
    assert run.job.state == "FAILED"


def test_an_error_of_the_engine_names_the_line_of_the_recipe(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "lesson.py").write_text(HEAD + LOOP.replace("rank=2", "rank=0"))
    run, code = finished(tmp_path, "lesson.py", "--", "--model", str(tiny))
    assert code == 1 and "error (invalid_request)" in run.output and "Traceback" not in run.output
    assert re.search(r"lesson\.py, line 13: model = await", run.output), run.output
