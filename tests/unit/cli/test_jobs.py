"""Jobs on this machine: found by id, listed, and their losses read."""

import fcntl
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harmonia.cli.jobs import OPTIM_STEP, find_job, read_losses, short_id
from harmonia.cli.main import app
from harmonia.client.recipe import JournalJobNotifier
from harmonia.errors import InvalidRequestError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARMONIA_JOBS", str(tmp_path))
    return tmp_path


def job(folder: Path, job_id: str, *records: tuple[str, Mapping[str, float | str]]) -> Path:
    """A job that logged these records."""
    with JournalJobNotifier(folder / job_id, job_id) as journal:
        journal.describe("/recipes/lesson.py", {})
        journal.mark_running()
        for stage, metrics in records:
            journal.report_metrics(stage, metrics)
    return folder / job_id


def test_losses_of_steps_and_of_validations_share_an_axis(folder: Path) -> None:
    steps = [(OPTIM_STEP, {"model": "m", "loss": loss}) for loss in (3.0, 2.0, 1.0)]
    logged = [("metrics", {"train/loss": 3.0, "val/loss": 2.5}), ("metrics", {"val/loss": 1.5})]
    first = job(folder, "one", ("metrics", {"val/loss": 4.0}), steps[0], logged[0], *steps[1:], logged[1])
    assert read_losses(first) == {
        "m": [(1, 3.0), (2, 2.0), (3, 1.0)],
        "val/loss": [(0, 4.0), (1, 2.5), (3, 1.5)],
    }


def test_losses_are_per_token_and_steps_made_again_replace_the_first_ones(folder: Path) -> None:
    counts = {"num_samples": 2, "num_tokens": 8}
    steps = [(1, 16.0), (2, 12.0), (3, 11.0), (2, 8.0), (3, 4.0)]
    records = [(OPTIM_STEP, {"model": "m", "loss": loss, "optim_step": step, **counts}) for step, loss in steps]
    records.insert(3, ("metrics", {"val/loss": 9.0}))
    records.append(("metrics", {"val/loss": 1.5}))
    assert read_losses(job(folder, "one", *records)) == {"m": [(1, 4.0), (2, 2.0), (3, 1.0)], "val/loss": [(3, 1.5)]}


def test_losses_that_only_a_logger_knows_are_read(folder: Path) -> None:
    records = [("metrics", {"policy/loss": 2.0, "lr": 1.0}), ("metrics", {"policy/loss": 1.0, "validation/loss": 5.0})]
    assert read_losses(job(folder, "one", *records)) == {
        "policy/loss": [(1, 2.0), (2, 1.0)],
        "validation/loss": [(2, 5.0)],
    }


def test_jobs_are_found_by_a_part_of_their_id_and_by_folder(folder: Path) -> None:
    first, _ = job(folder, "01aa-bb01"), job(folder, "01aa-cc02")
    assert find_job("01aa-bb01") == find_job("b01") == find_job("01aa-b") == find_job(str(first)) == first
    with pytest.raises(InvalidRequestError, match="2 jobs begin or end with '01aa'"):
        find_job("01aa")
    with pytest.raises(InvalidRequestError, match="no job 'zz' in"):
        find_job("zz")


def test_short_ids_are_as_long_as_they_must_be(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first, second, third = (job(folder, f"0193a6f0-1111-7{end}") for end in ("aaa-1", "abb-2", "cc-3"))
    assert [short_id(one) for one in (first, second, third)] == [
        "0193a6f0-1111-7aa",
        "0193a6f0-1111-7ab",
        third.name[:16],
    ]
    assert all(find_job(short_id(one)) == one for one in (first, second, third))
    elsewhere = job(tmp_path_factory.mktemp("mine"), "one")
    assert short_id(elsewhere) == str(elsewhere)


def test_a_job_whose_process_is_gone_has_died(folder: Path) -> None:
    for name in ("01", "02"):
        journal = JournalJobNotifier(folder / name, name)
        journal.describe("/recipes/" + "long" * 20, {})
        journal.mark_running()
        journal.close()
    held = os.open(folder / "01", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    result = CliRunner().invoke(app, ["jobs"], env={"COLUMNS": "80"})
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    os.close(held)
    assert [row[:2] for row in rows] == [["02", "DIED"], ["01", "RUNNING"]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", " ".join(row[3:5])) for row in rows)


def test_jobs_are_listed_newest_first(folder: Path) -> None:
    job(folder, "01", (OPTIM_STEP, {"model": "m", "loss": 0.25}))
    job(folder, "02")
    (folder / "03").mkdir()
    (folder / "03" / "job.json").write_text("torn")
    result = CliRunner().invoke(app, ["jobs"])
    newest, oldest = [line.split() for line in result.stdout.splitlines()[1:]]
    assert newest[:3] == ["02", "COMPLETED", "lesson.py"]
    assert oldest[0] == "01" and oldest[-1] == "0.25"
    assert "cannot be read" in result.stderr
    assert CliRunner().invoke(app, ["jobs", "--ids"]).stdout.split() == ["02", "01"]


def test_no_jobs_are_no_error(folder: Path) -> None:
    result = CliRunner().invoke(app, ["jobs"])
    assert result.exit_code == 0 and "no jobs in" in result.stderr
