"""Where metrics go."""

import io
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.trainers.metric_loggers import (
    CompositeLogger,
    JobLogger,
    Logger,
    MLFlowLogger,
    StdoutLogger,
    TBMetricsLogger,
    WandbLogger,
    get_prod_logger,
)

SAMPLES = Table(["prompt", "answer"]).add_rows([["2 < 3?", "[bold]yes[/bold] & so"]] * 7)


@pytest.fixture(autouse=True)
def no_logger_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR", "TENSORBOARD_MONITORING_LINK"):
        monkeypatch.delenv(name, raising=False)


class Job(StdoutJobNotifier):
    """A job that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("job-7")
        self.records: list[tuple[str, dict[str, Any]]] = []

    def report_metrics(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Keep it."""
        self.records.append((stage, dict(metrics)))


def printing() -> tuple[StdoutLogger, io.StringIO]:
    text = io.StringIO()
    return StdoutLogger(Console(file=text, width=100)), text


# ----------------------------------------------------------------------------------------------------- terminal


def test_one_line_per_record() -> None:
    logger, text = printing()
    logger({"loss": 2.34567, "num_tokens": 12, "completion_percentage": 0.25, "training/completion_percentage": 0.25})
    logger({"lr": np.float32(1e-5), "note": "halfway [there]"})
    first, second = text.getvalue().splitlines()
    assert first.split() == ["1", "25.0%", "loss", "2.346", "num_tokens", "12"]
    assert second.split() == ["2", "lr", "1e-05", "note", "halfway", "[there]"]


def test_tables_show_their_first_rows_as_they_are() -> None:
    logger, text = printing()
    logger({"validation/samples": SAMPLES})
    printed = text.getvalue()
    assert "validation/samples" in printed and printed.count("[bold]yes[/bold] & so") == 5 and "2 more rows" in printed


def test_the_configuration_is_a_table() -> None:
    logger, text = printing()
    logger.log_config(
        {"lr": 0.1, "model": {"path": "model_registry://tiny", "api_key": None}, "wd": 0, "callbacks": []}
    )
    rows = [line.split("│")[1:-1] for line in text.getvalue().splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["lr", "0.1"],
        ["model.path", "model_registry://tiny"],
        ["wd", "0"],
    ]


def test_steps_go_on_after_a_restart() -> None:
    logger, _ = printing()
    logger({"loss": 1})
    other, text = printing()
    other.set_state(logger.get_state())
    other({"loss": 1})
    assert text.getvalue().split()[0] == "2"


def test_what_cannot_be_logged_is_named(caplog: pytest.LogCaptureFixture) -> None:
    logger, text = printing()
    with caplog.at_level(logging.WARNING, "harmonia"):
        logger({"loss": 1.0, "weights": [1, 2]})
    assert "metric 'weights' is a list" in caplog.text and "loss" in text.getvalue()


def test_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    logger = StdoutLogger()
    logger({"loss": 0.5})
    assert "loss 0.5" in capsys.readouterr().out
    assert logger.is_available() and logger.training_monitoring_link is None


# -------------------------------------------------------------------------------------------------- tensorboard


def events(file: Path) -> Iterator[Event]:
    """What an event file holds: records of a length, its checksum, that many bytes, and theirs."""
    data = file.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def written(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Scalars by key as (step, value), and texts by key, of all event files in order."""
    scalars: dict[str, list[tuple[int, float]]] = {}
    texts = {}
    for file in sorted(folder.glob("events.*")):
        for event in events(file):
            if event.HasField("session_log"):  # what TensorBoard makes of a restart
                scalars = {key: [pair for pair in old if pair[0] < event.step] for key, old in scalars.items()}
            for value in event.summary.value:
                if value.HasField("tensor"):
                    texts[value.tag] = value.tensor.string_val[0].decode()
                else:
                    scalars.setdefault(value.tag, []).append((event.step, round(value.simple_value, 4)))
    return scalars, texts


def test_tensorboard_gets_curves_texts_and_pages(tmp_path: Path) -> None:
    logger = TBMetricsLogger("run-1", str(tmp_path), "http://localhost:6006")
    logger.log_config({"lr": 0.1})
    logger({"train/loss": 2.5, "num_tokens": 4, "note": "hi"})
    logger({"train/loss": np.float32(1.5), "samples": SAMPLES})
    scalars, texts = written(tmp_path / "run-1")  # before it is closed: people watch while it trains
    assert scalars == {"train/loss": [(0, 2.5), (1, 1.5)], "num_tokens": [(0, 4.0)]}
    assert '"lr": 0.1' in texts["config/text_summary"] and texts["note/text_summary"] == "hi"
    tables = tmp_path / "run-1" / "tables"
    assert "[bold]yes[/bold] &amp; so" in (tables / "samples-000001.html").read_text()
    assert "href='samples-000001.html'" in (tables / "index.html").read_text()
    assert logger.training_monitoring_link == "http://localhost:6006"
    logger.close()


def test_tensorboard_forgets_what_a_lost_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    first = TBMetricsLogger("run", str(tmp_path))
    first({"loss": 3.0})
    state = first.get_state()
    first({"loss": 99.0})
    first.close()
    resumed = TBMetricsLogger("run", str(tmp_path))
    resumed.log_config({"lr": 0.1})
    resumed.set_state(state)
    resumed({"loss": 2.0})
    resumed.close()
    assert written(tmp_path / "run")[0] == {"loss": [(0, 3.0), (1, 2.0)]}


def test_an_index_of_chosen_pages(tmp_path: Path) -> None:
    logger = TBMetricsLogger("run", str(tmp_path))
    logger.create_index_page(str(tmp_path), ["a&b.html"])
    assert "<a href='a&amp;b.html'>a&amp;b.html</a>" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("tensorboardX", "tensorboard", lambda: TBMetricsLogger("run", "/tmp")),
        ("mlflow", "mlflow", lambda: MLFlowLogger("project", "run", "http://localhost")),
        ("wandb", "wandb", lambda: WandbLogger("project", "run")),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str, extra: str, make: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(InvalidRequestError, match=rf"{module} is not installed; `pip install harmonia\[{extra}\]`"):
        make()


def test_what_is_installed_says_so() -> None:
    assert TBMetricsLogger.is_available()
    assert all(isinstance(kind.is_available(), bool) for kind in (MLFlowLogger, WandbLogger))


# ------------------------------------------------------------------------------------------- several, and the job


def test_two_loggers_as_one(tmp_path: Path) -> None:
    main, text = printing()
    second, job = TBMetricsLogger("run", str(tmp_path)), Job()
    both = CompositeLogger(main, CompositeLogger(second, JobLogger(job)))
    both({"loss": 1.0})
    both.log_config({"lr": 0.1})
    assert "loss" in text.getvalue() and job.records == [("metrics", {"loss": 1.0})]
    fresh = CompositeLogger(printing()[0], CompositeLogger(TBMetricsLogger("run", str(tmp_path)), JobLogger(job)))
    fresh.set_state(both.get_state())
    assert fresh.get_state() == both.get_state() == {"main": {"step": 1}, "second": {"main": {"step": 1}, "second": {}}}
    fresh.set_state(main.get_state())
    assert fresh.get_state()["main"] == {"step": 1}, "a checkpoint of one logger"
    both.close()


def test_the_second_logger_ends_even_if_the_first_fails_to() -> None:
    ended = []

    class Failing(Logger):
        def __call__(self, metrics: Mapping[str, Any]) -> None: ...

        def close(self) -> None:
            raise OSError("disk full")

    class Ending(Failing):
        def close(self) -> None:
            ended.append(True)

    with pytest.raises(OSError, match="disk full"):
        CompositeLogger(Failing(), Ending()).close()
    assert ended


def test_the_job_gets_plain_numbers_and_tables() -> None:
    job = Job()
    JobLogger(job)({"samples": SAMPLES, "loss": np.float64(0.5), "steps": np.int64(3), "odd": object()})
    ((stage, record),) = job.records
    assert stage == "metrics" and record == {"samples": SAMPLES, "loss": 0.5, "steps": 3}
    assert [type(value) for value in record.values()] == [Table, float, int] and next(iter(record)) == "samples"


# -------------------------------------------------------------------------------------------------- get_prod_logger


def context(**config: str | None) -> Any:
    """As much of a recipe's context as naming a run takes."""
    names = {"project": None, "recipe_name": None, "name": None, **config}
    return SimpleNamespace(job=Job(), config=SimpleNamespace(**names))


def test_standard_output_and_the_job_unless_the_environment_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    ctx = context()
    get_prod_logger(ctx)({"loss": 1.0})
    assert ctx.job.records == [("metrics", {"loss": 1.0})] and "loss 1" in capsys.readouterr().out
    assert isinstance(get_prod_logger(), StdoutLogger)


@pytest.mark.parametrize(
    ("ctx", "folder"),
    [
        (context(recipe_name="sft"), "sft-job-7"),
        (context(recipe_name="sft", name="monday"), "sft-monday"),
        (context(), "dpo-job-7"),
        (None, "dpo-tuesday"),
    ],
)
def test_tensorboard_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ctx: Any, folder: str) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_MONITORING_LINK", "http://curves")
    monkeypatch.setenv("HARMONY_RECIPE_NAME", "dpo")
    monkeypatch.setenv("HARMONY_JOB_ID", "tuesday")
    logger = get_prod_logger(ctx)
    logger({"loss": 1.0})
    logger.close()
    assert written(tmp_path / folder)[0] == {"loss": [(0, 1.0)]}
    assert logger.training_monitoring_link == "http://curves"


def test_a_logger_that_is_asked_for_and_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidRequestError, match="wandb is not installed"):
        get_prod_logger()


# ----------------------------------------------------------------------------------------- where they are installed


@pytest.mark.filterwarnings("default")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a store without a database, enough for a test
    uri = (tmp_path / "runs").as_uri()
    logger = MLFlowLogger("project", "run", uri, "http://mlflow/", run_tags={"team": "a"})
    logger.log_config({"lr": 0.1})
    logger({"loss": 2.0, "samples": SAMPLES})
    resumed = MLFlowLogger("project", "run", uri)
    resumed.set_state(logger.get_state())
    resumed({"loss": 1.0, "samples": SAMPLES})
    resumed.close()
    client, run_id = mlflow.MlflowClient(tracking_uri=uri), logger.get_state()["run_id"]
    run = client.get_run(run_id)
    assert run.data.params == {"lr": "0.1"} and run.data.tags["team"] == "a" and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(0, 2.0), (1, 1.0)]
    assert [file.path for file in client.list_artifacts(run_id, "tables")] == [
        "tables/samples-000000.html",
        "tables/samples-000001.html",
    ]
    assert logger.training_monitoring_link and logger.training_monitoring_link.startswith(
        "http://mlflow/#/experiments/"
    )


@pytest.mark.filterwarnings("default")
def test_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = WandbLogger("project", "run")
    logger.log_config({"lr": 0.1})
    logger({"loss": 2.0, "samples": SAMPLES})
    state = logger.get_state()
    logger.close()
    assert state["step"] == 1 and state["run_id"] and list(tmp_path.rglob("*.wandb"))
    resumed = WandbLogger("project", "run")
    resumed.set_state(state)
    assert resumed.get_state() == state and resumed.training_monitoring_link is None
    resumed.close()
