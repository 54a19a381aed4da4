"""The examples, as a reader would run them, with a tiny model."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import Server, StartServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def worker(start: StartServer, tiny: Path) -> Iterator[tuple[str, Server]]:
    port = _free_port()
    with start(tiny, "--kv-cache-len", "8192", "--threads", "1", "--worker-port", str(port)) as server:
        yield f"ws://127.0.0.1:{port}", server


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_train_while_serving(worker: tuple[str, Server], tiny: Path) -> None:
    address, server = worker
    options = ("--worker", address, "--server", f"{server.url}/v1", "--steps", "6", "--lr", "0.02")
    printed = run("train_while_serving.py", str(tiny), *options)
    losses = [float(loss) for loss in re.findall(r"^step .*loss +(\S+)", printed, re.MULTILINE)]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert len(re.findall(r"\?  ['\"]", printed)) == 10


def test_grpo_by_hand(worker: tuple[str, Server], tiny: Path) -> None:
    printed = run("grpo_by_hand.py", str(tiny), "--worker", worker[0], "--steps", "2")
    assert len(re.findall(r"^step .*reward", printed, re.MULTILINE)) == 2


KETTLE = EXAMPLES / "data" / "kettle.jsonl"
FAST = ("--learning-rate", "0.01")


@pytest.mark.parametrize(
    ("name", "flags", "prints"),
    [
        (
            "sft",
            (*FAST, "--dataset", str(KETTLE), "--epochs", "2"),
            r"student: 4 steps, loss [\d.]+ to [\d.]+ per token",
        ),
        ("dpo", (*FAST, "--epochs", "2"), r"before: .*\nafter: "),
        ("reward_model", (*FAST, "--epochs", "2"), r"kind [+-]\d.* rude [+-]\d"),
        ("custom_loss", (*FAST, "--steps", "3"), r"step  3  say +\d.*avoid +\d"),
        ("judge", (*FAST, "--steps", "2"), r"step 2  mean score [+-]\d"),
    ],
)
def test_recipes(
    worker: tuple[str, Server], tiny: Path, tmp_path: Path, name: str, flags: tuple[str, ...], prints: str
) -> None:
    command = [sys.executable, "-m", "harmonia.cli", "run", str(EXAMPLES / f"{name}.py"), "--worker", worker[0]]
    command += ["--job-dir", str(tmp_path), "--", "--model", str(tiny), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(prints, done.stdout + done.stderr), done.stdout + done.stderr


def test_notebook(worker: tuple[str, Server], tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER", worker[0])
    monkeypatch.setenv("MODEL", str(tiny))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert outputs[-1]["data"]["text/plain"] == "'kettle-notebook'"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
