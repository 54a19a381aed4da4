"""What people see of a running job."""

import io
import itertools
import re
import sys

import pytest
from rich.console import Console

from harmonia.cli.live import Display
from harmonia.client.table import Table


def display(stream: io.StringIO, is_terminal: bool = False) -> Display:
    """A display whose clock advances a second at each look."""
    console = Console(file=stream, width=100, force_terminal=is_terminal, color_system=None)
    return Display(console, "sft", clock=itertools.count().__next__)


def test_one_line_tells_stage_loss_and_speed() -> None:
    shown = display(io.StringIO())
    shown.stage("Training", 0, 64)
    for loss in (4.0, 2.0):
        shown.step("model", {"loss": loss, "grad_norm": 0.5, "num_input_tokens": 300, "num_tokens": 20})
    shown.stage("Training", 32, 64)
    shown.record({"loss": 2.0, "num_dropped_samples": 3})
    assert shown.line() == "Training 32/64  model: step 2, loss 2, grad norm 0.5, 300 tokens/s  3 samples dropped"
    assert shown.trainings["model"].num_tokens == 600


def test_losses_are_per_token_and_steps_go_on_after_a_resume() -> None:
    shown = display(io.StringIO())
    shown.step("model", {"loss": 40.0, "num_samples": 3, "num_tokens": 60, "optim_step": 41.0})
    shown.record({"train/loss": 40.0, "val/loss": 1.5, "value/loss": 9.0})
    assert shown.line() == "model: step 41, loss 2 per token  val/loss 1.5"


def test_what_is_distilled_shows_how_far_it_agrees() -> None:
    shown = display(io.StringIO())
    shown.step("draft", {"loss": 4.0, "agreement": 0.456, "overlap": 0.4, "grad_norm": 0.5})
    assert shown.line() == "draft: step 1, loss 4, agreement 0.46, grad norm 0.5"


def test_a_model_is_shown_while_it_is_made() -> None:
    shown = display(io.StringIO())
    shown.spawn("pupil", 0.51)
    assert shown.line() == "loading pupil 51 %"
    shown.spawn("pupil", 1.0)
    assert shown.line() == ""
    shown.begin("canceling")
    shown.spawn("other", 0.1)
    assert shown.line() == "canceling"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_tables_are_printed_with_their_first_rows(is_terminal: bool) -> None:
    stream = io.StringIO()
    with display(stream, is_terminal) as shown:
        shown.stage("Training", 1, 2)
        shown.record({"generation/samples": Table(["prompt", "answer"]).add_rows([["why?", n] for n in range(8)])})
    assert "generation/samples" in stream.getvalue() and stream.getvalue().count("why?") == 5
    assert "3 more rows" in stream.getvalue()


def test_speed_is_that_of_the_last_steps() -> None:
    shown = display(io.StringIO())
    shown.step("model", {"num_tokens": 10_000})
    assert shown.trainings["model"].tokens_per_s is None
    for _ in range(20):
        shown.step("model", {"num_tokens": 100})
    assert shown.trainings["model"].tokens_per_s == pytest.approx(100)


def test_without_a_terminal_the_last_state_is_printed_once() -> None:
    stream = io.StringIO()
    with display(stream) as shown:
        for step in range(100):
            shown.step("model", {"loss": float(step)})
    assert len(re.findall("loss 99", stream.getvalue())) == 1
    assert stream.getvalue().count("\n") <= 2


def test_in_a_terminal_prints_of_others_go_above(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, terminal = io.StringIO(), io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with display(stream, is_terminal=True) as shown:
        shown.stage("Training", 1, 2)
        sys.stdout.write("overwritten\rhello [bold]there[/bold]\nno end")
        Console(highlight=False).print("from a console")
    assert sys.stdout is terminal and terminal.getvalue() == ""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", stream.getvalue())
    assert "hello [bold]there[/bold]\n" in text and "overwritten" not in text
    assert "no endfrom a console\n" in text
    assert text.splitlines()[-1].startswith("Training") and "1/2" in text.splitlines()[-1]


def test_the_remaining_time_follows_the_pace_of_this_run() -> None:
    shown = display(io.StringIO())
    shown.stage("Training", 10, 50)
    assert shown.stages["Training"].remaining_s is None
    shown.stage("Training", 20, 50)
    assert shown.stages["Training"].remaining_s == pytest.approx(3)
