"""The folder that a job leaves."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harmonia.client.artifacts import CustomArtifact, ModelArtifact
from harmonia.client.recipe import JobState, JournalJobNotifier, read_journal, read_metrics, read_restore_data
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError


def test_a_job_from_start_to_end(tmp_path: Path) -> None:
    folder, seen = tmp_path / "jobs" / "j1", list[JobState]()
    with JournalJobNotifier(folder, "j1", seen.append) as job:
        assert read_journal(folder).state == "PENDING"
        job.describe("sft.py", {"lr": 0.1})
        job.mark_running()
        job.register_stages(["train", "evaluate"])
        job.stage_notifier("train").report_progress(10, 3)
        job.stage_notifier("train").report_progress(processed_num_samples=4, checkpoints=["c"])
        job.stage_notifier("surprise").set_monitoring_link("http://stage")
        job.set_monitoring_link("http://job")
        assert read_journal(folder).started_at is not None
    state = read_journal(folder)
    assert (state.job_id, state.state, state.recipe, state.config) == ("j1", "COMPLETED", "sft.py", {"lr": 0.1})
    assert [stage.name for stage in state.stages] == ["train", "evaluate", "surprise"] == job.stages
    assert (state.stage("train").processed, state.stage("train").total, state.stage("train").checkpoints) == (
        4,
        10,
        ("c",),
    )
    assert (state.stage("surprise").monitoring_link, state.monitoring_link) == ("http://stage", "http://job")
    assert state.error is None and state.started_at and state.ended_at and state.started_at <= state.ended_at
    assert seen[-1] == state and seen[0].state == "PENDING"


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("bad"), "FAILED"), (asyncio.CancelledError(), "CANCELED"), (KeyboardInterrupt(), "CANCELED")],
)
def test_how_it_ended_and_what_it_made_until_then(
    error: BaseException, expected: str, journal: JournalJobNotifier, tmp_path: Path
) -> None:
    ctx: Any = SimpleNamespace(job=journal, artifacts_dir=tmp_path)
    CustomArtifact("notes/first", ctx, file="n.txt", about=np.float32(0.5)).write("partial")
    CustomArtifact("lost", ctx, file=str(tmp_path / "lost"))
    (tmp_path / "lost").unlink()
    ModelArtifact("policy", ctx)
    with pytest.raises(type(error)), journal:
        raise error
    state = read_journal(journal.folder)
    assert state.state == expected and state.ended_at
    model, notes = state.artifacts
    assert (model.kind, model.file, model.metadata["model_key"]) == ("model", None, "policy")
    assert (notes.name, notes.metadata) == ("notes/first", {"about": 0.5})
    assert notes.file and (journal.folder / notes.file).read_text(encoding="utf-8") == "partial"
    assert [file.parent.name for file in journal.folder.rglob("*.txt")] == ["artifacts"]
    if expected == "FAILED":
        assert state.error and state.error.message == "ValueError: bad" and __file__ in state.error.traceback


def test_metrics_are_kept_whatever_they_are(journal: JournalJobNotifier) -> None:
    table = Table(["prompt", "score"]).add_row(["hi", 0.5])
    journal.stage_notifier("train").report_metrics({"loss": np.float32(1.5), "step": np.int64(3), "samples": table})
    journal.report_metrics("train", {"loss": math.nan, "note": "well", "ok": True})
    first, second = read_metrics(journal.folder)
    assert first.stage == "train" and first.at.endswith("+00:00")
    assert first.metrics == {
        "loss": 1.5,
        "step": 3,
        "samples": {"headers": ["prompt", "score"], "rows": [["hi", "0.5"]]},
    }
    assert second.metrics == {"loss": None, "note": "well", "ok": True}


def test_numbers_of_any_kind_can_be_read_again(journal: JournalJobNotifier) -> None:
    journal.describe("sft", {"lr": np.float32(0.5), "dims": (np.int64(2),)})
    journal.report_progress("train", np.int64(10), 2.5)  # type: ignore[arg-type]
    journal.report_checkpoint("c", np.int64(3), np.float32(25), {"m": "saved"}, {"share": np.float64(0.25)})  # type: ignore[arg-type]
    state = read_journal(journal.folder)
    assert (state.stage("train").total, state.stage("train").processed) == (10, 2)
    assert (state.checkpoints[0].step, state.checkpoints[0].completion_percentage) == (3, 25.0)
    assert state.config == {"lr": 0.5, "dims": [2]}


def test_text_that_is_no_unicode_is_kept_readable(journal: JournalJobNotifier) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    journal.describe("sft", {"dataset": name})
    journal.report_metrics("train", {"file": name})
    journal.settle(FileNotFoundError(f"no file {name}"))
    state = read_journal(journal.folder)
    assert state.state == "FAILED" and state.error and state.error.message.endswith(r"no file caf\udce9.jsonl")
    assert (
        state.config == {"dataset": r"caf\udce9.jsonl"} == {"dataset": read_metrics(journal.folder)[0].metrics["file"]}
    )


def test_checkpoints_can_be_resumed_from(journal: JournalJobNotifier) -> None:
    assert read_restore_data(journal.folder) is None
    for step in (10, 20):
        data = {"checkpoint_json": json.dumps({"data": {"dataset_idx": step}})}
        journal.report_checkpoint(f"c/{step}", step, step / 2, {"model": f"checkpoints/{step}"}, data, "train")
    newest = read_journal(journal.folder).checkpoints[-1]
    assert (newest.step, newest.completion_percentage, newest.stage) == (20, 10.0, "train")
    assert newest.models == {"model": "checkpoints/20"}
    assert read_restore_data(journal.folder) == {"data": {"dataset_idx": 20}}


def test_a_job_is_continued_in_its_folder(journal: JournalJobNotifier) -> None:
    journal.mark_running()
    journal.register_stages(["train"])
    journal.report_progress("train", 10, 5)
    journal.report_metrics("train", {"loss": 2.0})
    journal.report_checkpoint("c", 5, 50.0)
    journal.report_error("lost")
    with (journal.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"at": "torn')
    assert len(read_metrics(journal.folder)) == 1
    started = journal.state.started_at
    with JournalJobNotifier(journal.folder, "j1") as again:
        assert (again.state.state, again.state.error, again.stages) == ("PENDING", None, ["train"])
        again.mark_running()
        again.register_stages(["train"])
        again.report_metrics("train", {"loss": 1.0})
    state = read_journal(journal.folder)
    assert (state.state, state.started_at, state.stage("train").processed) == ("COMPLETED", started, 5)
    assert [checkpoint.id for checkpoint in state.checkpoints] == ["c"]
    assert [record.metrics["loss"] for record in read_metrics(journal.folder)] == [2.0, 1.0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match=r"folder .*/file/j1 cannot be written: Not a directory"):
        JournalJobNotifier(tmp_path / "file" / "j1", "j1")


def test_folders_without_a_journal_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no folder of a job: it has no job.json"):
        read_journal(tmp_path)
    (tmp_path / "job.json").write_text('{"job_id": 3}', encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=r"job.json cannot be read: .*job_id"):
        read_journal(tmp_path)
    assert read_metrics(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
from harmonia.client.recipe import JournalJobNotifier
job = JournalJobNotifier(Path(sys.argv[1]), "j")
job.mark_running()
for step in range(10**9):
    job.report_progress("train", 10**9, step)
    job.report_metrics("train", {"step": step, "text": "x" * (step % 4000)})
"""


def test_a_killed_job_leaves_a_whole_journal(tmp_path: Path) -> None:
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        deadline = time.monotonic() + 60
        before = len(read_metrics(tmp_path))
        while len(read_metrics(tmp_path)) < before + 50 + 7 * attempt:
            assert process.poll() is None and time.monotonic() < deadline
            if (tmp_path / "job.json").exists():
                read_journal(tmp_path)  # while it is being replaced
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        state, records = read_journal(tmp_path), read_metrics(tmp_path)
        assert state.state == "RUNNING"
        told, kept = state.stage("train").processed, records[-1].metrics["step"]
        assert told is not None and told - 1 <= kept <= told
