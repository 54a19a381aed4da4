"""What a job leaves behind: files that grow until they are handed over, and models."""

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest

from harmonia.client.artifacts import (
    ArtifactProcessingMode,
    CustomArtifact,
    DatasetArtifact,
    EvaluationArtifact,
    ModelArtifact,
)
from harmonia.client.data import (
    AdaptiveDatasetKind,
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    SampleMetadata,
    TurnTuple,
)
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.parameters import Dataset
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.recipe.journal import JournalJobNotifier, read_journal
from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread

ASK = [TurnTuple(["user", "Colour of the sky?"])]
BLUE, GREEN = TurnTuple(["assistant", "Blue."]), TurnTuple(["assistant", "Green."])


def metadata() -> SampleMetadata:
    """Of a fresh row."""
    return SampleMetadata(id=uuid4(), created_at=int(time.time()), external_data={"nothing": None})


def test_a_custom_file(lone_ctx: RecipeContext, tmp_path: Path) -> None:
    artifact = CustomArtifact("notes/one", lone_ctx, source="me")
    artifact.write("first")
    artifact.append(b" second")
    assert artifact.read() == b"first second" == Path(artifact.file_path).read_bytes()
    (tmp_path / "other.txt").write_text("copied")
    artifact.copy_from(tmp_path / "other.txt")
    assert artifact.read() == b"copied"
    assert (artifact.name, artifact.kind, artifact.metadata) == ("notes/one", "custom", {"source": "me"})
    assert artifact.processing_mode is ArtifactProcessingMode.ON_COMPLETION
    with pytest.raises(InvalidRequestError, match=r"cannot copy none.txt into 'notes/one': No such file"):
        artifact.copy_from("none.txt")


def test_a_custom_file_has_the_name_that_it_is_given(lone_ctx: RecipeContext, tmp_path: Path) -> None:
    assert Path(CustomArtifact("notes", lone_ctx, "notes.md").file_path).name == "notes.md"
    elsewhere = tmp_path / "deep" / "notes.md"
    CustomArtifact("notes", lone_ctx, str(elsewhere)).write("here")
    assert elsewhere.read_text() == "here"
    for name in ("../../escape", "..", ""):
        with pytest.raises(ValueError, match="cannot be called"):
            CustomArtifact("notes", lone_ctx, name)


def test_a_file_is_handed_over_once(lone_ctx: RecipeContext, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = CustomArtifact("notes", lone_ctx)
    artifact.write("all")
    artifact.finalize()
    artifact.finalize()
    lone_ctx.job.complete()
    assert capsys.readouterr().out.count("custom 'notes'") == 1
    with pytest.raises(ValueError, match="'notes' is finalized; make another one"):
        artifact.append("more")


async def test_a_data_set_reads_back(lone_ctx: RecipeContext) -> None:
    artifact = (
        DatasetArtifact("mixed", lone_ctx)
        .add_prompt_items([DatasetPromptSample(prompt=ASK, metadata=metadata())])
        .add_completion_items([DatasetSample(prompt=ASK, completion=BLUE, metadata=metadata())])
        .add_metric_items(
            [DatasetMetricSample(prompt=ASK, completion=BLUE, metrics={"correct": 1}, metadata=metadata())]
        )
        .add_preference_items(
            [
                DatasetPreferenceSample(
                    prompt=ASK, good_completion=BLUE, bad_completion=GREEN, metric=None, metadata=metadata()
                )
            ]
        )
    )
    assert (artifact.sample_count, artifact.artifact_kind) == (4, "dataset")
    assert artifact.dataset_kind is AdaptiveDatasetKind.Mixed
    threads = await Dataset(dataset_key="made", feedback_key="correct", local_file_path=artifact.file_path).load()
    assert [thread.metadata for thread in threads] == [
        {"nothing": None},
        {"nothing": None},
        {"nothing": None, "res": 1.0},
        {"nothing": None, "preferred_completion": "Blue.", "other_completion": "Green."},
    ]


async def test_threads_become_rows(lone_ctx: RecipeContext) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
    asked = StringThread([("user", "Hi")], metadata={"at": Path("somewhere")})
    calling = await StringThread.from_fragments([("user", [{"type": "text", "text": "Hi"}]), ("assistant", [call])])
    answered = StringThread([("user", "Hi")]).assistant("Hello")
    for kind in (AdaptiveDatasetKind.Mixed, AdaptiveDatasetKind.Prompt):
        artifact = DatasetArtifact("made", lone_ctx, kind).add_samples_from_thread([asked, calling, answered])
        threads = await Dataset(dataset_key="made", local_file_path=artifact.file_path).load()
        assert [t.get_fragments() for t in threads] == [t.get_fragments() for t in (asked, calling, answered)]
        assert [t.metadata for t in threads] == [{"at": "somewhere"}, {}, {}]
        has_answers = kind is AdaptiveDatasetKind.Mixed
        assert [sum(t.get_turn_weights()) for t in threads] == [0, has_answers, has_answers]


def test_a_data_set_keeps_to_its_kind(lone_ctx: RecipeContext) -> None:
    prompt = DatasetPromptSample(prompt=ASK, metadata=metadata())
    rated = DatasetMetricSample(prompt=ASK, completion=BLUE, metrics={}, metadata=metadata())
    assert DatasetArtifact("richer", lone_ctx, AdaptiveDatasetKind.Completion).add_samples([rated]).sample_count == 1
    poorer = DatasetArtifact("poorer", lone_ctx, AdaptiveDatasetKind.Completion)
    with pytest.raises(ValueError, match="a DatasetPromptSample lacks completion, which a Completion data set needs"):
        poorer.add_samples([rated, prompt])
    assert poorer.sample_count == 0 and not Path(poorer.file_path).read_bytes()
    for kind in (AdaptiveDatasetKind.Metric, AdaptiveDatasetKind.Preference):
        with pytest.raises(ValueError, match="threads do not hold what a"):
            DatasetArtifact("rated", lone_ctx, kind).add_samples_from_thread([StringThread([("user", "Hi")])])
    with pytest.raises(ValueError, match="a thread is empty"):
        DatasetArtifact("empty", lone_ctx).add_samples_from_thread([StringThread()])


def test_an_evaluation(lone_ctx: RecipeContext) -> None:
    artifact = EvaluationArtifact("scores", lone_ctx)
    with pytest.raises(ValueError, match="'scores' was given no samples"):
        artifact.add_samples([])
    interaction = EvalSampleInteraction(StringThread([("user", "Hi")], metadata={"set": {1}}), "m")
    samples = [EvalSample(interaction, [Grade(1, "k")], "set") for _ in range(2)]
    assert artifact.add_samples(samples[:1]).add_samples(samples[1:]) is artifact
    rows = [json.loads(line) for line in Path(artifact.file_path).read_text().splitlines()]
    assert [row["id"] for row in rows] == [sample.id for sample in samples]
    assert (artifact.sample_count, artifact.kind) == (2, "eval")


async def test_a_job_keeps_what_was_made(lone_ctx: RecipeContext, tmp_path: Path) -> None:
    lone_ctx.job = JournalJobNotifier(tmp_path / "journal", "job-1")
    CustomArtifact("notes", lone_ctx).write("kept")
    ModelArtifact("runs/one", lone_ctx, step=3)
    lone_ctx.job.complete()
    state = read_journal(tmp_path / "journal")
    assert "notes" in str(state.artifacts) and "runs/one" in str(state.artifacts)
    assert "kept" in [file.read_text() for file in (tmp_path / "journal" / "artifacts").rglob("*") if file.is_file()]
