"""The demonstration, as a person runs it, and the lesson that it teaches."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from harmonia.cli import demo_lesson, demo_prompts, demo_show
from harmonia.cli.demo_job import losses_of
from harmonia.cli.demo_lesson import make_lesson, num_right
from harmonia.cli.demo_prompts import make_prompts
from harmonia.cli.demo_report import picture_place
from harmonia.cli.demo_speed import learned_of
from harmonia.errors import InvalidRequestError
from harmonia.sdk import Adaptive

LINE = re.compile(r"([1-6][SML] [a-z ]+; ){1,3}(here|go)")
UNSEEN = demo_lesson.UNSEEN_COFFEES + demo_lesson.UNSEEN_OTHERS


@pytest.fixture(scope="module")
def roomy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, for longer conversations: its answers of random bytes are long when they are asked back."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("roomy") / "roomy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


@contextmanager
def running(folder: Path, *options: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The demonstration with its temporary files in `folder`; killed at the end if it still runs."""
    command = [sys.executable, "-u", "-m", "harmonia.cli.demo", *options]
    environment = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "160", **variables}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str], words: str) -> str:
    """What it says until these words come."""
    assert process.stdout
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def rest(process: subprocess.Popen[str]) -> str:
    """What it says until it ends."""
    assert process.stdout
    return process.stdout.read()


def left_in(folder: Path) -> list[str]:
    """Names of the data folders that are still there."""
    return [path.name for path in folder.glob("harmonia-demo-*")]


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


def test_losses_are_read_from_the_log_of_the_job() -> None:
    log = """12:00:01 INFO    harmonia.worker.serve: serving
   1   3.1%  train/loss 78.88  num_tokens 98  num_input_tokens 501  num_samples 8  lr 0.0004  num_dropped_samples 0
   2   6.2%  train/loss 2e-05  num_tokens 10  num_input_tokens 485  num_samples 8  lr 0.0009  num_dropped_samples 0
"""
    assert losses_of(log) == [(1, pytest.approx(78.88 * 8 / 98)), (2, pytest.approx(1.6e-5))]


# --------------------------------------------------------------------------------------------------- the questions


def test_the_questions_are_the_same_every_time_and_none_is_in_both_parts() -> None:
    prompts = make_prompts(demo_prompts.NUM_PROMPTS)
    assert prompts == make_prompts(demo_prompts.NUM_PROMPTS)
    every = [*prompts.learned, *prompts.asked]
    assert len(set(every)) == len(every) == demo_prompts.NUM_PROMPTS + demo_prompts.NUM_ASKED
    assert make_prompts(10) == (prompts.learned[:10], prompts.asked)


def test_acceptance_is_read_from_the_log_of_the_job() -> None:
    log = """   1  val/acceptance_rate 0.018  val/num_proposed_tokens 109  val/tokens_per_s 12.5
   2  50.0%  train/loss 8.8  num_tokens 96  train/acceptance_rate 0.3646  train/overlap 0.63  lr 0.01
   3 100.0%  train/loss 8.1  num_tokens 96  train/acceptance_rate 0.4  train/overlap 0.65  lr 0.001
   4  val/acceptance_rate 0.4  val/num_proposed_tokens 90  val/tokens_per_s 20  val/plain_tokens_per_s 15
"""
    assert learned_of(log) == ([0.3646, 0.4], [(0.018, 12.5), (0.4, 20.0)], 15.0)
    assert learned_of("") == ([], [], None)


@pytest.mark.parametrize(("rows", "specdec"), [(-1, False), (257, False), (1, True), (100_000, True)])
def test_numbers_of_rows_that_cannot_be(rows: int, specdec: bool) -> None:
    with pytest.raises(InvalidRequestError, match=f"--rows must be from . to .* here, got {rows}"):
        demo_show.num_rows(rows, specdec=specdec)


# ------------------------------------------------------------------------------------------------- the data folder


def test_the_data_folder_goes_unless_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with demo_show.data_folder(None) as folder:
        (folder / "harmonia.db").touch()
        assert folder.parent == tmp_path
    assert not folder.exists()
    with demo_show.data_folder(tmp_path / "mine") as folder:
        (folder / "harmonia.db").touch()
    assert (tmp_path / "mine" / "harmonia.db").exists()


def test_a_data_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "harmonia.db").touch()
    with pytest.raises(InvalidRequestError, match="harmonia up --data-dir"), demo_show.data_folder(tmp_path):
        pass


def test_a_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo_show, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(InvalidRequestError, match="--data-dir names another place"), demo_show.data_folder(None):
        pass
    assert not left_in(tmp_path)


def test_the_installed_model_is_found(smollm2: Path) -> None:
    assert demo_show.bundled_model() == smollm2


def test_a_picture_that_cannot_be_drawn_is_named_before_anything_starts() -> None:
    with pytest.raises(InvalidRequestError, match="--picture names another place"):
        picture_place(Path(os.devnull) / "loss.png")


# ----------------------------------------------------------------------------------------------- the demonstration


def test_it_talks_teaches_deploys_compares_draws_and_serves_on(roomy: Path, tmp_path: Path) -> None:
    picture, elsewhere = tmp_path / "new" / "loss.png", tmp_path / "precious.db"
    options = ("--port", "0", "--model", str(roomy), "--rows", "256", "--picture", str(picture))
    with running(tmp_path, *options, ADAPTIVE_DB__URL=f"sqlite:///{elsewhere}") as process:
        shown = heard(process, "Ctrl-C ends it")
        said = " ".join(shown.split())
        assert said.count("tokens/s") == 2
        assert re.search(r"[1-9]\d* of \d+ prompt tokens came from the cache", said.split("Which river")[1])
        assert re.search(r"step \d+ ", said), "an answer of the adapter while it learns"
        assert re.search(r"\d+ answers were given by the base while it learned", said)
        assert re.search(r"barista [│|] 24 [│|] 24 [│|] (100|\d\d?)%", said), "interactions and feedback"
        assert picture.read_bytes().startswith(b"\x89PNG")
        url, api_key, job = re.search(
            r'base_url="(http://[^"]+)/v1", api_key="(hk-[^"]+)".* job (\S+) --logs', said
        ).groups()
        with OpenAI(base_url=f"{url}/v1", api_key=api_key) as client:
            question = [{"role": "user", "content": "A tea, please."}]
            for model in ("default/roomy", "default/barista"):
                answer = client.chat.completions.create(model=model, messages=question, max_tokens=4)
                assert answer.usage.completion_tokens > 0
        with Adaptive(url, api_key, "default") as adaptive:
            assert adaptive.jobs.get(job).status == "COMPLETED"
        assert httpx.get(f"{url}/api/v1/models").status_code == 401
        process.send_signal(signal.SIGINT)
        rest(process)
        assert process.wait(40) == 0
    assert not left_in(tmp_path) and not elsewhere.exists()


def test_it_cuts_trains_and_deploys_a_draft_that_changes_no_answer(roomy: Path, tmp_path: Path) -> None:
    picture = tmp_path / "acceptance.png"
    options = ("--specdec", "--port", "0", "--model", str(roomy), "--rows", "40", "--picture", str(picture))
    with running(tmp_path, *options) as process:
        said = " ".join(heard(process, "Ctrl-C ends it").split())
        assert "the first 1 of its layers" in said and "roomy_accelerated is online beside roomy" in said
        assert "8 of 8 answers are the same to the letter" in said
        assert re.search(r"as it was cut [│|] 0\.\d+ [│|] [\d.]+ [│| ]+ trained [│|] 0\.\d+", said)
        assert picture.read_bytes().startswith(b"\x89PNG")
        url, api_key = re.search(r'base_url="(http://[^"]+)/v1", api_key="(hk-[^"]+)"', said).groups()
        with Adaptive(url, api_key, "default") as adaptive:
            assert {model.key for model in adaptive.models.list()} == {"roomy", "roomy_accelerated"}
        process.send_signal(signal.SIGINT)
        rest(process)
        assert process.wait(40) == 0
    assert not left_in(tmp_path)


def test_ctrl_c_ends_a_lesson_and_leaves_nothing(roomy: Path, tmp_path: Path) -> None:
    options = ("--port", "0", "--model", str(roomy), "--picture", str(tmp_path / "loss.png"))
    with running(tmp_path, *options) as process:
        heard(process, "step ")
        assert left_in(tmp_path)
        process.send_signal(signal.SIGINT)
        shown = rest(process)
        assert process.wait(40) == 130
    assert "Traceback" not in shown and "error" not in shown and "All of it" not in shown
    assert not left_in(tmp_path)


def test_a_port_that_is_taken_is_said_at_once(roomy: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ("--once", "--port", port, "--model", str(roomy), "--picture", str(tmp_path / "loss.png"))
        with running(tmp_path, *options) as process:
            shown = rest(process)
            assert process.wait(60) == 1
    assert shown.startswith("error (invalid_request)") and f"port {port}" in shown and "--port" in shown, shown
    assert not left_in(tmp_path)
