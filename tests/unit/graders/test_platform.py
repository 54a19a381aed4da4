"""Graders that the control plane runs: what travels together, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harmonia.client.recipe.grader_records import Verdict
from harmonia.client.structured import JsonParseError
from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.graders import IgnoreGradeException, PlatformGrader
from harmonia.graders.platform import MOST_CHARACTERS, MOST_TOGETHER
from harmonia.threads import StringThread


class Plane:
    """Scores by the length of the answer; `verdicts` are what it gives for some answers."""

    def __init__(self) -> None:
        self.asked: list[Sequence[Mapping[str, Any]]] = []
        self.verdicts: dict[str, Verdict] = {}
        self.refusal: HarmoniaError | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def grade(self, _: str, threads: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        self.asked.append(threads)
        await self.open.wait()
        if self.refusal is not None:
            raise self.refusal
        answers = [thread["messages"][-1]["content"] for thread in threads]
        return [self.verdicts.get(answer, Verdict(value=float(len(answer)), reasoning="long")) for answer in answers]


def thread(answer: str, metadata: Any = None) -> StringThread:
    return StringThread([("user", "?"), ("assistant", answer)], metadata)


def grader_of(plane: Any) -> PlatformGrader:
    return PlatformGrader("far", plane)


async def test_conversations_travel_together_and_in_order() -> None:
    plane = Plane()
    grader = grader_of(plane)
    grades = await asyncio.gather(*(grader.grade(thread("x" * size)) for size in range(1, 101)))
    assert [grade.value for grade in grades] == list(range(1, 101))
    assert [len(batch) for batch in plane.asked] == [MOST_TOGETHER] * 3 + [100 - 3 * MOST_TOGETHER]
    assert (grades[0].grader_key, grades[0].reasoning) == ("far", "long")
    logs = grader.get_logs(clear=True)
    assert (logs["score/count"], logs["score/max"], logs["score/scored_samples_count"]) == (100, 100.0, 100)
    assert grader.get_logs() == {}


async def test_long_conversations_travel_in_smaller_company() -> None:
    plane = Plane()
    grader, long = grader_of(plane), "x" * (MOST_CHARACTERS // 3)
    grades = await asyncio.gather(*(grader.grade(thread(long)) for _ in range(5)), grader.grade(thread(long * 4)))
    assert [grade.value for grade in grades] == [len(long)] * 5 + [4 * len(long)]
    assert [len(batch) for batch in plane.asked] == [2, 2, 1, 1]


async def test_metadata_travels_as_far_as_json_goes() -> None:
    plane = Plane()
    grader = grader_of(plane)
    for given, sent in (({"a": [1], "path": Path("/x")}, {"a": [1], "path": "/x"}), (None, None), ("text", None)):
        await grader.grade(thread("x", given))
        assert plane.asked[-1] == [
            {
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}],
                "metadata": sent,
            }
        ]
    circle: dict[str, Any] = {}
    circle["self"] = circle
    for wrong in ({"share": float("nan")}, circle, {("a", "b"): 1}):
        with pytest.raises(InvalidRequestError, match="metadata of a conversation cannot be sent"):
            await grader.grade(thread("x", wrong))


async def test_errors_keep_their_kind_and_cost_the_others_nothing() -> None:
    plane = Plane()
    plane.verdicts = {
        "left": Verdict(error="no context", code="internal", ignored=True),
        "words": Verdict(error="not JSON", code=JsonParseError.code),
        "down": Verdict(error="not up", code="unavailable"),
        "strange": Verdict(error="what?", code="of_a_later_version"),
        "nothing": Verdict(),
    }
    grader = grader_of(plane)
    answers = ["fine", *plane.verdicts]
    found = await asyncio.gather(*(grader.grade(thread(answer)) for answer in answers), return_exceptions=True)
    kinds = [type(each) for each in found[1:]]
    assert kinds == [IgnoreGradeException, JsonParseError, UnavailableError, HarmoniaError, HarmoniaError]
    assert "leaves this conversation out: no context" in str(found[1])
    logs = grader.get_logs()
    assert (logs["score/count"], logs["score/unscored_samples_count"]) == (1, 5)


async def test_a_refusal_is_told_to_everybody_who_asked() -> None:
    plane = Plane()
    plane.refusal = InvalidRequestError("no such grader")
    grader = grader_of(plane)
    found = await asyncio.gather(*(grader.grade(thread(text)) for text in "abc"), return_exceptions=True)
    assert [(type(each), str(each)) for each in found] == [(InvalidRequestError, "no such grader")] * 3
    plane.refusal = None
    assert (await grader.grade(thread("abcd"))).value == 4.0


async def test_who_leaves_is_not_waited_for() -> None:
    plane = Plane()
    plane.open.clear()
    grader = grader_of(plane)
    tasks = [asyncio.create_task(grader.grade(thread("x" * size))) for size in range(1, 200)]
    while len(plane.asked) < 4:
        await asyncio.sleep(0)
    for task in tasks[:150]:
        task.cancel()
    plane.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in found[:150])
    assert [each.value for each in found[150:] if not isinstance(each, BaseException)] == list(range(151, 200))
    assert sum(map(len, plane.asked)) == 4 * MOST_TOGETHER + 49
