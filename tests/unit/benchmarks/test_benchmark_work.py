"""The work: shapes, prompts, and the arithmetic of a timing."""

from typing import ClassVar

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.work import FIRST_TOKEN_ID, Draw, Generation, Shape, Timing, measure, shapes, warm_up

DRAW = Draw(seed=0, vocab=200)


class Recorder:
    """An engine that notes what it is asked for."""

    processes: ClassVar[dict[int, str]] = {}

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], int]] = []

    def generate(self, prompts: list[list[int]], num_output: int) -> Generation:
        self.calls.append((prompts, num_output))
        return Generation(wall_s=float(len(self.calls)), tokens=[[0] * num_output for _ in prompts])


def test_shapes_are_one_for_each_count() -> None:
    assert [s.n for s in shapes([1, 8], 16, 4)] == [1, 8]
    assert shapes([1], 16, 4)[0].length == 20


@pytest.mark.parametrize(("counts", "num_input", "num_output", "named"), [
    ([0], 1, 1, "--n is 0"), ([1], 0, 1, "--input is 0"), ([1], 1, -2, "--output is -2"),
])  # fmt: skip
def test_shapes_name_what_is_too_small(counts: list[int], num_input: int, num_output: int, named: str) -> None:
    with pytest.raises(BenchmarkError, match=named):
        shapes(counts, num_input, num_output)


def test_prompts_have_the_shape_and_stay_in_the_vocabulary() -> None:
    prompts = DRAW.prompts(Shape(n=3, num_input=50, num_output=1), "x")
    assert [len(p) for p in prompts] == [50] * 3
    assert all(FIRST_TOKEN_ID <= token < 200 for p in prompts for token in p)


def test_prompts_repeat_with_their_salt_alone() -> None:
    shape = Shape(n=2, num_input=8, num_output=1)
    assert DRAW.prompts(shape, "a") == DRAW.prompts(shape, "a")
    assert DRAW.prompts(shape, "a") != DRAW.prompts(shape, "b")


def test_timing_gives_the_rates() -> None:
    timing = Timing(shape=Shape(n=4, num_input=100, num_output=11), wall_s=2.0, first_token_wall=0.5, tokens=[])
    assert timing.out_tok_s == 22.0
    assert timing.in_tok_s == 800.0
    assert timing.itl_ms == pytest.approx(150.0)


def test_one_token_has_no_latency_between_tokens() -> None:
    assert (
        Timing(shape=Shape(n=1, num_input=8, num_output=1), wall_s=1.0, first_token_wall=1.0, tokens=[]).itl_ms is None
    )


def test_measure_never_shows_a_prompt_twice() -> None:
    engine = Recorder()
    shape = Shape(n=2, num_input=32, num_output=8)
    warm_up(engine, shape, DRAW)
    timing = measure(engine, shape, DRAW, "repeat 0")
    measure(engine, shape, DRAW, "repeat 1")
    prompts = [tuple(p[:16]) for call, _ in engine.calls for p in call]
    assert len(set(prompts)) == len(prompts)
    assert (timing.first_token_wall, timing.wall_s) == (2.0, 3.0)


def test_measure_runs_a_prefill_once() -> None:
    engine = Recorder()
    timing = measure(engine, Shape(n=4, num_input=8, num_output=1), DRAW, "repeat 0")
    assert [num_output for _, num_output in engine.calls] == [1]
    assert timing.wall_s == timing.first_token_wall
