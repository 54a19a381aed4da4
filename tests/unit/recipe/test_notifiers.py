"""Reporting about jobs: to standard output, and to a control plane."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from harmonia.client.artifacts import CustomArtifact, DatasetArtifact, ModelArtifact
from harmonia.client.recipe import (
    ControlPlaneJobNotifier,
    RecipeConfig,
    RecipeContext,
    SimpleProgressNotifier,
    StdoutJobNotifier,
    recipe_traceback,
)
from harmonia.client.recipe.notifiers import JobNotifier
from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread


class Platform:
    """A control plane that takes everything and keeps a list of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.uploaded: dict[str, str] = {}

    def upload_file(self, file_path: str, content_type: str) -> str:
        self.calls.append(("upload_file", content_type))
        self.uploaded[f"session-{len(self.uploaded)}"] = Path(file_path).read_text(encoding="utf-8")
        return f"session-{len(self.uploaded) - 1}"

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.calls.append((name, *given))


def context(job: JobNotifier, folder: Path) -> RecipeContext:
    """What artifacts need of a context."""
    made = RecipeContext(RecipeConfig(harmony_url="ws://nowhere:1", working_dir=str(folder)), _internal=True)
    made.job = job
    return made


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def job(platform: Platform) -> ControlPlaneJobNotifier:
    return ControlPlaneJobNotifier(platform, "j1")


def test_stdout_says_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with StdoutJobNotifier() as job:
        job.mark_running()
        job.register_stages(["train", "evaluate"])
        stage = job.stage_notifier("whatever")
        stage.report_progress(10, 3, "http://curves", ["c1"])
        stage.report_progress(tot_num_samples=10)
        stage.report_progress()
        stage.set_monitoring_link("http://more")
        stage.report_metrics({"loss": 1.0})
        job.report_checkpoint("id", 7, 20.0, {"policy": "checkpoints/x"}, {"big": "state"}, "train")
    assert (job.job_id, stage.stage_name, stage.job_notifier, job.stages) == (
        "local",
        "whatever",
        job,
        ["train", "evaluate"],
    )
    assert capsys.readouterr().out.splitlines() == [
        "[job local] running",
        "[job local] stages: train, evaluate",
        "[job local] whatever: 3/10 samples; curves at http://curves; checkpoints c1",
        "[job local] whatever: ?/10 samples",
        "[job local] whatever: curves at http://more",
        "[job local] train: checkpoint at 20 %, step 7: checkpoints/x",
        "[job local] complete",
    ]


def test_progress_beyond_the_total_is_clamped(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "harmonia"):
        StdoutJobNotifier().stage_notifier("train").report_progress(10, 12)
    assert "train: 10/10 samples" in capsys.readouterr().out
    assert "12 of 10" in caplog.text


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("bad luck"), "ValueError: bad luck"),
        (SystemExit(2), "SystemExit: 2"),
        (asyncio.CancelledError(), "canceled"),
    ],
)
def test_stdout_says_how_a_job_ended(
    error: BaseException, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = StdoutJobNotifier("j")
    CustomArtifact("notes", context(job, tmp_path)).write("partial")
    with pytest.raises(type(error)), job:
        raise error
    said = capsys.readouterr().out
    assert says in said and "custom 'notes' in " in said and "complete" not in said


def test_exiting_with_0_is_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), StdoutJobNotifier("j"):
        sys.exit(0)
    assert capsys.readouterr().out == "[job j] complete\n"


def test_artifacts_that_are_files_need_an_upload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = StdoutJobNotifier("j")
    artifact = DatasetArtifact("made", context(job, tmp_path))
    with pytest.raises(ValueError, match="dataset 'made' cannot be registered without its file; call finalize"):
        job.register_artifact(artifact)
    job.register_artifact(artifact, "session")
    ModelArtifact("policy", context(job, tmp_path))
    assert "model 'policy'" in capsys.readouterr().out


def test_platform_hears_everything_in_order(job: ControlPlaneJobNotifier, platform: Platform, tmp_path: Path) -> None:
    ctx = context(job, tmp_path)
    job.start_heartbeat()
    with job:
        job.mark_running()
        job.register_stages(["train", "evaluate"])
        job.stage_notifier("train").report_progress(10, 11)
        job.report_checkpoint("c1", 7, 20.0, {"policy": "x"}, {"checkpoint_json": "{}"}, "train")
        ModelArtifact("policy", ctx)
        DatasetArtifact("rows", ctx).add_samples_from_thread([StringThread([("user", "hi")])])
        CustomArtifact("notes", ctx, file="notes.txt").write("well")
    names = [call[0] for call in platform.calls]
    assert names == [
        "job_heartbeat",
        "mark_running",
        "register_job_stages",
        "update_job_progress",
        "report_checkpoint",
        "register_job_artifact",
        *("upload_file", "register_job_artifact") * 2,
        "complete_job",
        *("stop_heartbeat",) * 2,
    ]
    calls = {name: call for name, *call in platform.calls}
    assert calls["job_heartbeat"] == ["j1", 10.0]
    assert calls["register_job_stages"] == ["j1", [("train", 0, None), ("evaluate", 1, "train")]]
    assert calls["update_job_progress"] == ["j1", "train", 10, 10, None, None]
    assert calls["report_checkpoint"][2]["model_checkpoint_names"] == {"policy": "x"}
    registered = [call[3:] for call in platform.calls if call[0] == "register_job_artifact"]
    assert [row[:2] for row in registered] == [("policy", "model"), ("rows", "dataset"), ("notes", "custom")]
    assert [row[2] for row in registered] == ["on_registration", "on_completion", "on_completion"]
    assert [row[4] for row in registered] == [None, "session-0", "session-1"]
    assert [call[1] for call in platform.calls if call[0] == "upload_file"] == ["application/jsonl", "text/plain"]
    assert json.loads(platform.uploaded["session-0"])["prompt"] == [["user", "hi"]]


def test_platform_hears_of_failures_after_what_was_made(
    job: ControlPlaneJobNotifier, platform: Platform, tmp_path: Path
) -> None:
    CustomArtifact("notes", context(job, tmp_path)).write("partial")
    with pytest.raises(RuntimeError), job:
        raise RuntimeError("no more")
    names = [call[0] for call in platform.calls]
    assert names == ["upload_file", "register_job_artifact", "report_error", "stop_heartbeat"]
    assert "RuntimeError: no more" in platform.calls[2][2]
    with pytest.raises(asyncio.CancelledError), job:
        raise asyncio.CancelledError
    assert platform.calls[-2][:3] == ("report_error", "j1", "the job was canceled")


def test_stages_of_the_platform_are_registered_first(job: ControlPlaneJobNotifier) -> None:
    job.register_stages(["train"])
    for call in (job.stage_notifier, job.report_progress):
        with pytest.raises(ValueError, match=r"'evaluate' was not registered \(registered: train\)"):
            call("evaluate")


def test_an_artifact_that_fails_keeps_no_other_back(job: ControlPlaneJobNotifier, platform: Platform, tmp_path: Path):
    ctx = context(job, tmp_path)
    lost, kept = CustomArtifact("lost", ctx), CustomArtifact("kept", ctx)
    Path(lost.file_path).unlink()
    with pytest.raises(FileNotFoundError), job:
        kept.write("here")
    names = [call[0] for call in platform.calls]
    assert names == ["upload_file", "upload_file", "register_job_artifact", "report_error", "stop_heartbeat"]


async def test_simple_progress(capsys: pytest.CaptureFixture[str]) -> None:
    stage = StdoutJobNotifier("j").stage_notifier("load")
    with SimpleProgressNotifier(stage):
        pass
    async with SimpleProgressNotifier(stage, monitoring_link="http://l"):
        pass
    with pytest.raises(ValueError, match="x"), SimpleProgressNotifier(stage):
        raise ValueError("x")
    lines = [line.partition("load: ")[2] for line in capsys.readouterr().out.splitlines()]
    links = [f"{done}/1 samples; curves at http://l" for done in (0, 1)]
    assert lines == ["0/1 samples", "1/1 samples", *links, "0/1 samples"]


def test_tracebacks_show_the_authors_frames() -> None:
    def author() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    async def refused() -> None:
        await asyncio.wait_for(asyncio.sleep(0), 1)
        StdoutJobNotifier().complete(1)  # type: ignore[call-arg]

    with pytest.raises(ValueError, match="second") as caught:
        author()
    text = recipe_traceback(caught.value)
    assert "KeyError: 'first'" in text and text.strip().endswith("ValueError: second") and __file__ in text
    with pytest.raises(InvalidRequestError) as inside:
        ControlPlaneJobNotifier(Platform(), "j").stage_notifier("x")
    assert "platform.py" not in recipe_traceback(inside.value)
    with pytest.raises(TypeError) as outside:
        asyncio.run(refused())
    assert "base_events.py" not in recipe_traceback(outside.value) and "in refused" in recipe_traceback(outside.value)
