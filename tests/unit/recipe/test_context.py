"""The context of a running recipe."""

import asyncio
import json
from pathlib import Path

import pytest

from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.recipe import (
    CheckpointArtifactMetadata,
    JournalJobNotifier,
    RecipeConfig,
    RecipeContext,
    StdoutJobNotifier,
    read_journal,
)
from harmonia.errors import InvalidRequestError, UnavailableError, WorkerLostError
from harmonia.protocol.instances import Dealloc
from harmonia.threads import StringThread
from tests.unit.client.small_worker import SmallWorker


async def test_a_context_lives_with_its_job(
    launch: RecipeConfig, journal: JournalJobNotifier, worker: SmallWorker, tmp_path: Path
) -> None:
    async with RecipeContext.from_config(launch, job=journal, checkpoint_restore_data={"data": 1}) as ctx:
        assert ctx.job is journal and ctx.config is launch and ctx.control_plane is None
        assert ctx.checkpoint_restore_data == {"data": 1}
        assert read_journal(journal.folder).state == "RUNNING"
        assert ctx.working_dir == tmp_path / "work"
        assert ctx.datasets_dir == tmp_path / "work" / "datasets" and ctx.datasets_dir.is_dir()
        assert ctx.recipes_dir == tmp_path / "work" / "job_j1" / "recipes" and ctx.recipes_dir.is_dir()
        assert ctx.artifacts_dir == tmp_path / "work" / "job_j1" / "artifacts" and ctx.artifacts_dir.is_dir()
        model = await ctx.client.model("/models/tiny").spawn_inference("judge")
    assert read_journal(journal.folder).state == "COMPLETED"
    assert worker.of(Dealloc)[-1].instance == "judge"
    with pytest.raises(UnavailableError, match="closed"):
        await model.tokenize("x")


async def test_awaiting_leaves_the_end_to_the_caller(
    launch: RecipeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = await RecipeContext.from_config(launch.model_copy(update={"working_dir": None, "job_id": "j9"}))
    assert isinstance(ctx.job, StdoutJobNotifier) and ctx.job.job_id == "j9"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert ctx.working_dir == tmp_path / "adaptive"
    ctx.job.complete()
    await ctx.close()
    assert capsys.readouterr().out == "[job j9] running\n[job j9] complete\n"


async def test_jobs_without_an_id_get_one(launch: RecipeConfig) -> None:
    async with RecipeContext.from_config(launch) as one, RecipeContext.from_config(launch) as other:
        assert len(one.job.job_id) == 36 and one.job.job_id != other.job.job_id


async def test_load_reads_the_command_line(worker: SmallWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py", "--harmony-url", worker.address])
    ctx = await RecipeContext.load()
    assert ctx.config.harmony_url == worker.address
    await ctx.close()


async def test_a_recipe_that_raises_or_is_canceled(launch: RecipeConfig, tmp_path: Path, worker: SmallWorker) -> None:
    failed, canceled = (JournalJobNotifier(tmp_path / name, name) for name in ("failed", "canceled"))
    with pytest.raises(ZeroDivisionError):
        async with RecipeContext.from_config(launch, job=failed):
            1 / 0  # noqa: B018

    async def endless() -> None:
        async with RecipeContext.from_config(launch, job=canceled) as ctx:
            judge = await ctx.client.model("/models/tiny").spawn_inference("judge")
            await asyncio.sleep(60)
            await judge.dealloc()

    task = asyncio.create_task(endless())
    while "judge" not in worker.models:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not worker.models
    assert read_journal(canceled.folder).state == "CANCELED"
    error = read_journal(failed.folder).error
    assert (
        error
        and error.message.startswith("ZeroDivisionError")
        and "recipe/context.py" not in error.traceback.replace(__file__, "")
    )


def test_contexts_are_not_constructed() -> None:
    with pytest.raises(TypeError, match="from_config"):
        RecipeContext(RecipeConfig(harmony_url="ws://x:1"))


@pytest.mark.parametrize(
    "fields",
    [
        {"project": "p", "api_key": "k"},
        {"project": "p", "control_plane_api_token": "k"},
        {"resume_checkpoint_artifact_id": "c1"},
    ],
)
async def test_what_needs_a_control_plane_says_so(fields: dict[str, str], journal: JournalJobNotifier) -> None:
    config = RecipeConfig(harmony_url="ws://127.0.0.1:9", **fields)
    with pytest.raises(UnavailableError, match="control_plane_url"):
        await RecipeContext.from_config(config, job=journal)
    assert read_journal(journal.folder).state == "FAILED"


async def test_a_key_or_a_project_alone_is_for_a_gateway(launch: RecipeConfig) -> None:
    for fields in ({"project": "p"}, {"api_key": "k"}):
        async with RecipeContext.from_config(launch.model_copy(update=fields)) as ctx:
            assert ctx.control_plane is None


async def test_a_job_whose_worker_is_not_there_fails(
    journal: JournalJobNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmonia.client.connect._CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(WorkerLostError, match="harmonia worker"):
        async with RecipeContext.from_config(RecipeConfig(harmony_url="ws://127.0.0.1:9"), job=journal):
            pass
    error = read_journal(journal.folder).error
    assert error and "harmonia worker" in error.message
    with pytest.raises(InvalidRequestError, match="no address"):
        await RecipeContext.from_config(RecipeConfig(harmony_url="nowhere"))


def test_evaluations_are_shown_and_kept_beside_the_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thread = StringThread([("user", "hi"), ("assistant", "<b>hello</b>")])
    sample = EvalSample(EvalSampleInteraction(thread, "model_registry://tiny"), [Grade(0.5, "[/polite]")], "greetings")
    caller = tmp_path / "caller.py"
    caller.write_text("def call(f, *given):\n    f(*given)\n", encoding="utf-8")
    names: dict[str, object] = {"__name__": "caller", "__file__": str(caller)}
    exec(compile(caller.read_text(encoding="utf-8"), caller, "exec"), names)
    names["call"](RecipeContext.log_eval_result, [sample])  # type: ignore[operator]
    (folder,) = (tmp_path / "adaptive_eval_samples").iterdir()
    scores = json.loads((folder / "aggregate_scores.json").read_text(encoding="utf-8"))
    assert scores["tiny"]["[/polite]"]["mean"] == 0.5
    said = capsys.readouterr().out
    assert "[/polite]" in said and str(folder / "evaluation_samples.html") in said


def test_checkpoint_metadata_has_its_fields() -> None:
    metadata = CheckpointArtifactMetadata(step=3, completion_percentage=20.0)
    assert (metadata.model_checkpoint_names, metadata.user_data) == ({}, None)
