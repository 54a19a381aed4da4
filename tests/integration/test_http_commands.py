"""The commands, run as a person runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harmonia.models.registry import ModelRegistry
from tests.integration.conftest import StartServer


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_plan_counts_and_says_that_it_fits(tiny: Path) -> None:
    shown = run("harmonia.cli", "plan", str(tiny), "--kv-cache-len", "4096")
    assert (shown.returncode, "It fits" in shown.stdout) == (0, True), shown.stderr
    plan = json.loads(run("harmonia.cli", "plan", str(tiny), "--kv-cache-len", "4096", "--json").stdout)
    assert plan["total_bytes"] == sum(row["num_bytes"] for row in plan["rows"])
    assert (plan["fits"], plan["kv_cache_len"]) == (True, 4096)


def test_plan_that_does_not_fit_names_the_levers_and_fails(tiny: Path) -> None:
    shown = run("harmonia.cli", "plan", str(tiny), "--kv-cache-len", "2000000000", "--dtype", "f32")
    assert shown.returncode == 1
    assert "It does not fit" in shown.stdout
    assert "kv_cache_len" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "/no/such/model"], "/no/such/model"),
        (["serve", ".", "--adapter", "nonsense"], "KEY=PATH"),
        (["serve", ".", "--name", "a", "--adapter", "a=/x"], "'a'"),
        (["plan", "/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_named(arguments: list[str], says: str) -> None:
    shown = run("harmonia.cli", *arguments)
    assert shown.returncode != 0
    assert says in " ".join(shown.stderr.split())


def test_help_teaches_with_examples() -> None:
    for command in ("serve", "plan"):
        assert "Examples" in run("harmonia.cli", command, "--help").stdout


def test_a_model_of_the_registry_is_planned_and_served_by_its_key(
    tiny: Path, start: StartServer, tmp_path: Path
) -> None:
    shutil.copytree(tiny, ModelRegistry(tmp_path).path_for("runs/one"))
    planned = run("harmonia.cli", "plan", "model_registry://runs/one", "--registry", str(tmp_path), "--json")
    assert json.loads(planned.stdout)["fits"], planned.stderr
    with start("model_registry://runs/one", "--registry", str(tmp_path), "--kv-cache-len", "1024") as server:
        assert server.client().get("/v1/models").json()["data"][0]["id"] == "runs/one"
    missing = run("harmonia.cli", "plan", "model_registry://runs/two", "--registry", str(tmp_path))
    assert missing.returncode == 2 and "runs/one" in missing.stderr
