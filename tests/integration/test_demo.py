"""The demonstration, as a person runs it, and the lesson that it teaches."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from harmonia.cli import demo_lesson
from harmonia.cli.demo_lesson import make_lesson, num_right

LINE = re.compile(r"([1-6][SML] [a-z ]+; ){1,3}(here|go)")
UNSEEN = demo_lesson.UNSEEN_COFFEES + demo_lesson.UNSEEN_OTHERS


@pytest.fixture(scope="module")
def roomy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, for longer conversations: its answers of random bytes are long when they are asked back."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("roomy") / "roomy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


def command(*options: str) -> list[str]:
    return [sys.executable, "-u", "-m", "harmonia.cli.demo", "--port", "0", *options]


def run(*options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), capture_output=True, text=True, timeout=timeout, check=False)


# ------------------------------------------------------------------------------------------------------ the lesson


def test_the_lesson_is_the_same_every_time_and_no_order_is_in_both_parts() -> None:
    lesson = make_lesson()
    assert lesson == make_lesson()
    orders = [row.order for row in (*lesson.rows, *lesson.held_out)]
    assert len(set(orders)) == len(orders) == demo_lesson.NUM_ROWS + demo_lesson.NUM_HELD_OUT


def test_every_line_follows_the_rules_of_the_house() -> None:
    lesson = make_lesson()
    for row in (*lesson.rows, *lesson.held_out):
        assert LINE.fullmatch(row.ticket), row
        for item in row.ticket.split("; ")[:-1]:
            drink = re.sub(r" (oat|soy)$", "", item[3:])
            assert drink in row.order
        assert row.ticket.endswith("go") == bool(re.search(r" to (go|take away|take with us)\b", row.order))


def test_half_of_the_held_out_orders_name_drinks_that_are_not_taught() -> None:
    lesson = make_lesson()
    taught = (*lesson.rows, *lesson.held_out[: -demo_lesson.NUM_UNSEEN])
    assert not any(drink in row.order for row in taught for drink in UNSEEN)
    assert all(any(drink in row.order for drink in UNSEEN) for row in lesson.held_out[-demo_lesson.NUM_UNSEEN :])
    assert lesson.hard_row() in lesson.held_out


def test_only_the_whole_line_is_right() -> None:
    rows = make_lesson().held_out[:3]
    exact, spaced, cut = rows[0].ticket, f"\n{rows[1].ticket} ", rows[2].ticket[:-1]
    assert num_right(rows, [exact, spaced, cut]) == 2


# ----------------------------------------------------------------------------------------------- the demonstration


def test_it_talks_teaches_compares_and_draws(roomy: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "loss.png"
    shown = run("--once", "--model", str(roomy), "--rows", "16", "--picture", str(picture))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    said = " ".join(shown.stdout.split())
    assert said.count("tokens/s") == 2
    assert "of 24 before" in said and "of 24 after" in said
    assert re.search(r"step [12] ", said), "an answer of the adapter while it trains"
    assert "6 answers were given while it learned" in said
    assert "loss per token" in said and "loss.png" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_afterwards_anybody_can_ask_the_base_and_the_adapter(roomy: Path, tmp_path: Path) -> None:
    options = ("--model", str(roomy), "--rows", "8", "--picture", str(tmp_path / "loss.png"))
    with subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            shown = ""
            while "answer.choices" not in shown:
                line = process.stdout.readline()
                assert line, shown
                shown += line
            url = re.search(r"is served on (\S+)", shown)[1]
            assert re.findall(r'"model":"(\w+)"', shown) == ["roomy", "barista"]
            for model in ("roomy", "barista"):
                body = {"model": model, "messages": [{"role": "user", "content": "A tea, please."}], "max_tokens": 4}
                answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
                assert answer.json()["usage"]["completion_tokens"] > 0
        finally:
            process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(40) == 0


def test_ctrl_c_ends_a_lesson(roomy: Path, tmp_path: Path) -> None:
    options = ("--model", str(roomy), "--picture", str(tmp_path / "loss.png"))
    with subprocess.Popen(command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        while "step 0" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        shown = process.stdout.read() + process.stderr.read()
        assert process.wait(40) == 130
    assert "Traceback" not in shown and "All of it" not in shown


@pytest.mark.parametrize("busy", [True, False], ids=["port", "picture"])
def test_what_cannot_work_is_said_at_once(roomy: Path, tmp_path: Path, busy: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1]) if busy else "0"
        place = tmp_path if busy else Path(os.devnull)
        shown = run("--once", "--model", str(roomy), "--port", port, "--picture", str(place / "loss.png"), timeout=60)
    assert shown.returncode == 1
    assert "error (invalid_request)" in shown.stderr and ("--port" if busy else "--picture") in shown.stderr
    assert not shown.stdout


def test_two_questions_and_the_cache_saves_tokens(smollm2: Path) -> None:
    shown = run("--once", "--rows", "0", "--model", str(smollm2), timeout=170)
    assert shown.returncode == 0, shown.stderr
    assert "Paris" in shown.stdout
    assert shown.stdout.count("tokens/s") == 2
    assert " 0 of" not in shown.stdout.split("Which river")[1]
