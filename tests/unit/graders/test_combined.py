"""Several graders as one."""

import asyncio
from typing import Any

import pytest

from harmonia.client import StringThread
from harmonia.client.structured import JsonParseError
from harmonia.errors import InvalidRequestError
from harmonia.graders import BaseGrader, CombinedGrader, IgnoreGradeException

ANSWERED = StringThread([("user", "What is blue?"), ("assistant", "The sky.")])


def gives(key: str, score: float) -> BaseGrader[dict[str, Any]]:
    async def grade(thread: StringThread) -> float:
        return score

    return BaseGrader.from_function(key, grade)


def fails(key: str, error: Exception) -> BaseGrader[dict[str, Any]]:
    async def grade(thread: StringThread) -> float:
        raise error

    return BaseGrader.from_function(key, grade)


IGNORES = fails("ignores", IgnoreGradeException("off topic"))
GARBLES = fails("garbles", JsonParseError("no JSON", "hm"))


async def test_the_weighted_mean_and_sum() -> None:
    graders = [gives("a", 1.0), gives("b", 0.0)]
    assert await CombinedGrader("c", graders).score_float_value(ANSWERED) == 0.5
    assert await CombinedGrader("c", graders, [3, 1]).score_float_value(ANSWERED) == 0.75
    assert await CombinedGrader("c", graders, [3, -1], "sum").score_float_value(ANSWERED) == 3.0
    grade = await CombinedGrader("c", graders, [3, 1]).grade(ANSWERED)
    assert grade.grader_key == "c" and grade.reasoning == "a: 1\nb: 0"


async def test_who_gives_no_grade_is_left_out_with_its_weight() -> None:
    grader = CombinedGrader("c", [gives("a", 0.8), IGNORES, GARBLES, gives("b", 0.2)], [1, 5, 5, 3])
    assert await grader.score_float_value(ANSWERED) == pytest.approx(0.35)


async def test_without_any_grade_there_is_none() -> None:
    with pytest.raises(IgnoreGradeException, match="ignores: off topic; garbles: no JSON"):
        await CombinedGrader("c", [IGNORES, GARBLES]).grade(ANSWERED)
    with pytest.raises(IgnoreGradeException, match="weight 0"):
        await CombinedGrader("c", [gives("a", 1.0), IGNORES], [0, 1]).grade(ANSWERED)


async def test_other_errors_propagate_once_all_have_ended() -> None:
    ended = []

    async def slow(thread: StringThread) -> float:
        await asyncio.sleep(0.01)
        ended.append(True)
        return 1.0

    grader = CombinedGrader("c", [fails("bad", KeyError("expected")), BaseGrader.from_function("slow", slow)])
    with pytest.raises(KeyError, match="expected"):
        await grader.grade(ANSWERED)
    assert ended


async def test_they_run_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def grade(thread: StringThread) -> float:
        await both.wait()
        return 1.0

    graders = [BaseGrader.from_function(key, grade) for key in "ab"]
    async with asyncio.timeout(5):
        assert await CombinedGrader("c", graders).score_float_value(ANSWERED) == 1.0


async def test_logs_of_each(caplog: pytest.LogCaptureFixture) -> None:
    grader = CombinedGrader("c", [gives("a", 1.0), IGNORES, gives("a", 0.0)])
    for _ in range(2):
        await grader.grade(ANSWERED)
    logs = grader.get_logs(clear=True)
    assert logs["score/mean"] == 0.5 and logs["score/count"] == 2
    assert logs["a/score/mean"] == 1.0 and logs["a-2/score/mean"] == 0.0
    assert logs["ignores/failure_rate"] == 1.0 and logs["a/failure_rate"] == 0.0
    assert "'ignores' was left out of 2 of 2 grades of 'c'" in caplog.text and "'a'" not in caplog.text
    assert grader.get_logs() == {}
    with caplog.at_level("WARNING"):
        caplog.clear()
        tolerant = CombinedGrader("c", [gives("a", 1.0), IGNORES], failure_rate_warning_threshold=1.0)
        await tolerant.grade(ANSWERED)
        tolerant.get_logs()
    assert not caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "at least one grader"),
        (([gives("a", 1.0)], [1.0, 2.0]), "2 weights for 1 graders"),
        (([gives("a", 1.0)], [0.0]), "add up to 0"),
        (([gives("a", 1.0)], None, "median"), "'sum' or 'mean', got 'median'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        CombinedGrader("c", *(arguments or ([],)))
