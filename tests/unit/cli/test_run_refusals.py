"""`harmonia run` with what cannot be run: each is told before a worker is started, and kept in the job's folder."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harmonia.cli.main import app
from harmonia.client.recipe import JobState, read_journal

HEAD = "from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main\n"
TAKES_CONFIG = HEAD + (
    "class Config(InputConfig):\n    epochs: int = 1\n\n"
    "@recipe_main\nasync def main(config: Config):\n    '''Count to three.'''\n"
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMONIA_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)


def run(*argv: str) -> Result:
    return CliRunner().invoke(app, ["run", *argv])


def only_job() -> JobState:
    (file,) = Path("jobs").glob("*/job.json")
    return read_journal(file.parent)


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [
        ("x = 1", [], "has no @recipe_main"),
        (
            HEAD + "@recipe_main\ndef a(): ...\n@recipe_main\ndef b(): ...",
            [],
            "2 functions with @recipe_main: a(), b()",
        ),
        ("import surely_not_there_12345", [], "No module named 'surely_not_there_12345'"),
        ("def (", [], "SyntaxError"),
        ("# /// script\n# dependencies = ['surely-not-there-12345>=99']\n# ///\n", [], "12345>=99 cannot be installed"),
        (TAKES_CONFIG, ["--epoch", "3"], "unknown flag --epoch; did you mean --epochs?"),
        (TAKES_CONFIG, ["--epochs", "x"], "cannot read 'x': --epochs INTEGER"),
        (HEAD + "@recipe_main\nasync def main(rows: list): ...", [], "nothing fills parameter 'rows'"),
    ],
)
def test_a_bad_recipe_or_flag_fails_the_job(source: str, flags: list[str], says: str) -> None:
    Path("lesson.py").write_text(source)
    result = run("lesson.py", "--", *flags)
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    job = only_job()
    assert job.state == "FAILED" and job.error is not None and job.recipe.endswith("lesson.py")
    assert "job folder" in result.stdout


def test_an_error_of_the_recipes_module_shows_its_own_frames_alone() -> None:
    Path("lesson.py").write_text("def deep():\n    raise KeyError('[red]')\n\ndeep()\n")
    result = run("lesson.py")
    assert result.exit_code == 1 and "KeyError: '[red]'" in result.stderr
    assert "lesson.py" in result.stderr and "harmonia/cli" not in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "cannot be read"), ("[1]", "must hold a JSON object"), ('{"epochs": 0.5}', "epochs"), ('{"a": 1}', "a:")],
)
def test_a_bad_file_of_parameters_names_what_is_wrong(content: str, says: str) -> None:
    Path("lesson.py").write_text(TAKES_CONFIG)
    Path("config.json").write_text(content)
    result = run("lesson.py", "--config", "config.json")
    assert result.exit_code == 1 and says in result.stderr and only_job().state == "FAILED"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "which recipe?"),
        (["sfx"], "no built-in recipe of that key (sft, specdec_alignment)"),
        (["--resume", "zz"], "no job 'zz'"),
        (["sft", "--worker", "ws://127.0.0.1:1", "--threads", "1"], "are for a worker that is started here"),
        (["sft", "--job-dir", "old"], "holds a job already"),
        (["--resume", "done"], "there is nothing to resume"),
        (["--resume", "old"], "ended before its first checkpoint"),
    ],
)
def test_what_is_no_job_makes_none(argv: list[str], says: str) -> None:
    for name, state in (("old", "FAILED"), ("done", "COMPLETED")):
        Path(name).mkdir()
        Path(name, "job.json").write_text(json.dumps({"job_id": name, "state": state, "recipe": "sft"}))
    result = run(*argv)
    assert result.exit_code == 1 and says in " ".join(result.stderr.split())
    assert not Path("jobs").exists()


def test_help_of_a_recipe_comes_from_its_config() -> None:
    Path("lesson.py").write_text(TAKES_CONFIG)
    text = run("lesson.py", "--", "--help").stdout
    assert text.startswith("lesson.py: Count to three.") and "--epochs INTEGER" in text and "[1]" in text
    Path("none.py").write_text(HEAD + "@recipe_main\ndef a(): ...")
    assert "takes no parameters" in run("none.py", "--", "-h").stdout


def test_parameters_need_no_dashes_before_them() -> None:
    Path("lesson.py").write_text(TAKES_CONFIG)
    text = " ".join(run("lesson.py", "--epoch", "3", "--threads", "1").stderr.split())
    assert "did you mean --epochs?" in text and "`--help` shows the options of the command" in text
    assert "no job 'nothing'" in run("--resume", "nothing", "--epochs", "3").stderr
    assert (
        "--config nothing.json cannot be read" in run("lesson.py", "--epochs", "3", "--config", "nothing.json").stderr
    )
    assert run("lesson.py", "-h").stdout.startswith("lesson.py: Count to three.")


def test_built_in_recipes_are_listed() -> None:
    assert "sft" in run("--list").stdout


def test_a_job_runs_once_at_a_time() -> None:
    Path("lesson.py").write_text(TAKES_CONFIG)
    Path("job").mkdir()
    held = os.open("job", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    result = run("lesson.py", "--job-dir", "job")
    assert result.exit_code == 1 and "runs already" in result.stderr and not list(Path("job").iterdir())
    os.close(held)
    assert "unknown flag" in run("lesson.py", "--job-dir", "job", "--", "--nothing", "3").stderr


def test_flags_may_follow_without_a_recipe() -> None:
    assert "which recipe?" in run("--", "--epochs", "3").stderr
    assert "no job 'nothing'" in run("--resume", "nothing", "--", "--epochs", "3").stderr
