"""Graders from functions, from source, and of one's own."""

import functools
import math
import traceback
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from harmonia.client import StringThread
from harmonia.client.data import AdaptiveGrader
from harmonia.client.table import Table
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.graders import BaseGrader, Grade, Grader, IgnoreGradeException, sample_score_distribution

ANSWERED = StringThread([("user", "What is blue?"), ("assistant", "The sky.")], {"expected": "The sky."})

SOURCE = '''
import re

def matches(thread):
    return re.fullmatch(thread.metadata["expected"], thread.last_content())

async def grade(thread: StringThread) -> float:
    """Exactly as expected."""
    if not thread.metadata:
        raise IgnoreGradeException("nothing is expected")
    return 1.0 if matches(thread) else 0.0
'''


async def length(thread: StringThread) -> float:
    return len(thread.last_content())


class Brevity(BaseGrader[dict[str, Any]]):
    async def grade(self, sample: StringThread) -> Grade:
        score = 1 / len(sample.last_content())
        self.add_log({"score": score, "answer": sample.last_content()})
        return Grade(score, self.grader_key, reasoning="shorter is better")


async def test_a_function() -> None:
    grader = BaseGrader.from_function("length", length)
    grade = await grader.grade(ANSWERED)
    assert (grade.value, grade.grader_key, grade.reasoning) == (8.0, "length", None)
    assert await grader.score_float_value(ANSWERED.user("And red?").assistant("A rose")) == 6.0
    assert grader.get_logs(clear=True) == {
        "score/mean": 7.0,
        "score/std": pytest.approx(math.sqrt(2)),
        "score/min": 6.0,
        "score/max": 8.0,
        "score/count": 2,
    }
    assert grader.get_logs() == {}


async def test_one_score_has_no_spread() -> None:
    grader = BaseGrader.from_function("length", length)
    await grader.grade(ANSWERED)
    assert grader.get_logs()["score/std"] == 0.0


async def test_anything_async_may_grade() -> None:
    class Scale:
        async def __call__(self, thread: StringThread) -> float:
            return 0.5

    async def times(factor: float, thread: StringThread) -> float:
        return factor * await length(thread)

    assert await BaseGrader.from_function("scale", Scale()).score_float_value(ANSWERED) == 0.5
    assert await BaseGrader.from_function("x", functools.partial(times, 2)).score_float_value(ANSWERED) == 16


@pytest.mark.parametrize("wrong", [lambda thread: 1.0, "length", None, Brevity])
def test_plain_functions_are_refused_with_the_remedy(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"'k' needs an async function.*async def grade\(thread"):
        BaseGrader.from_function("k", wrong)


@pytest.mark.parametrize("score", [None, "high", float("nan")])
async def test_scores_that_are_no_numbers(score: Any) -> None:
    async def grade(thread: StringThread) -> float:
        return score  # type: ignore[no-any-return]

    with pytest.raises(InvalidRequestError, match=f"'k' gave {score!r}"):
        await BaseGrader.from_function("k", grade).grade(ANSWERED)


async def test_errors_of_the_function_are_its_own() -> None:
    async def grade(thread: StringThread) -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        await BaseGrader.from_function("k", grade).grade(ANSWERED)


async def test_a_grader_of_ones_own() -> None:
    grader = Brevity("brevity")
    assert await grader.score_float_value(ANSWERED) == 0.125
    grader.add_log({"note": "not a score"})
    logs = grader.get_logs(log_all_samples=True)
    table = logs["score/scored_samples"]
    assert logs["score/count"] == 1 and isinstance(table, Table)
    assert table.export() == (["score", "answer", "note"], [["0.125", "The sky.", ""], ["", "", "not a score"]])
    with pytest.raises(TypeError, match="abstract"):
        BaseGrader("k")  # type: ignore[abstract]


def test_tables_of_samples_span_the_scores() -> None:
    logs = [{"score": float(score)} for score in range(100)]
    assert [log["score"] for log in sample_score_distribution(logs, 4)] == [0, 33, 66, 99]
    assert sample_score_distribution(logs[:3]) == logs[:3]
    assert len(sample_score_distribution(logs, 1)) == 1 and sample_score_distribution(logs, 0) == []
    tables = Brevity("k").get_sample_tables(logs, [{"error": "no"}])
    assert tables["score/scored_samples_count"] == 100 and tables["score/unscored_samples_count"] == 1
    scored, unscored = tables["score/scored_samples"], tables["score/unscored_samples"]
    assert isinstance(scored, Table) and len(scored.rows) == 15
    assert isinstance(unscored, Table) and unscored.export() == (["error"], [["no"]])


# -------------------------------------------------------------------------------------------------------- source


async def test_source_code() -> None:
    grader = BaseGrader.from_source_code("exact", SOURCE)
    assert await grader.score_float_value(ANSWERED) == 1.0
    assert await grader.score_float_value(ANSWERED.user("And red?").assistant("What?")) == 0.0
    with pytest.raises(IgnoreGradeException, match="nothing is expected"):
        await grader.grade(StringThread([("user", "hi"), ("assistant", "hi")]))
    assert grader.get_logs()["score/count"] == 2


async def test_indented_source_code_and_its_tracebacks() -> None:
    grader = BaseGrader.from_source_code(
        "nested", "    async def grade(thread):\n        return thread.metadata['no']\n"
    )
    with pytest.raises(KeyError) as failed:
        await grader.grade(ANSWERED)
    assert "return thread.metadata['no']" in "".join(traceback.format_exception(failed.value))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"must define `async def grade\(thread"),
        ("grade = 1.0", "must define"),
        ("def grade(thread):\n    return 1.0", "needs an async function"),
        ("async def grade(thread)\n    return 1.0", "does not run: SyntaxError.*line 1"),
        ("import no_such_module", "does not run: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit", "does not run: SystemExit"),
        ("\0", "does not run"),
    ],
)
def test_source_code_that_does_not_grade(source: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        BaseGrader.from_source_code("k", source)


# ------------------------------------------------------------------------------------------------------ platform


class Platform:
    """The graders that a control plane keeps."""

    def __init__(self, **configs: dict[str, Any]) -> None:
        self.configs = configs

    async def get_grader_config(self, key: str) -> AdaptiveGrader:
        if key not in self.configs:
            raise HarmoniaError(f"no grader {key!r}")
        fields = {"grader_id": uuid4(), "metric_id": uuid4(), "key": key, "name": key}
        return AdaptiveGrader.model_validate({**fields, "config": self.configs[key]})


class Context:
    """What a grader needs of a recipe's context."""

    def __init__(self, control_plane: Platform | None) -> None:
        self.control_plane = control_plane


class Config(BaseModel):
    grader: Grader
    more: set[Grader] = set()


def test_a_grader_in_a_config() -> None:
    config = Config.model_validate_json('{"grader": "exact", "more": ["a", "b", "a"]}')
    assert config.grader == Grader(grader_key="exact") and len(config.more) == 2
    assert config.model_dump(mode="json")["grader"] == "exact"
    assert Config.model_validate({"grader": {"grader_key": "exact"}}).grader == config.grader
    assert Grader.model_json_schema()["type"] == "string"  # what a flag of the command line asks for


async def test_graders_of_a_control_plane() -> None:
    ctx: Any = Context(
        Platform(
            exact={"type": "Function", "source_code": SOURCE},
            empty={"type": "Function"},
            own={"type": "Custom"},
            broken={
                **{"type": "Judge", "model_uri": None, "model_key": "far", "criteria": "?", "examples": []},
                **{"system_template": "", "user_template": "{{#if x}}"},
            },
        )
    )
    await Grader(grader_key="exact").check(ctx)
    grader = await Grader(grader_key="exact").load(ctx, tp=1, kv_cache_len=None, max_tokens=None)
    assert grader.grader_key == "exact" and await grader.score_float_value(ANSWERED) == 1.0
    for key, message in (("empty", "no source code"), ("broken", "does not close")):
        with pytest.raises(InvalidRequestError, match=message):
            await Grader(grader_key=key).check(ctx)
    with pytest.raises(InvalidRequestError, match="no source code"):
        await Grader(grader_key="empty").load(ctx)
    with pytest.raises(HarmoniaError, match="no grader 'unknown'"):
        await Grader(grader_key="unknown").check(ctx)


async def test_custom_graders_live_in_the_recipe() -> None:
    ctx: Any = Context(Platform(own={"type": "Custom"}))

    async def always(_: StringThread) -> float:
        return 0.5

    own = Grader(grader_key="own")
    await own.check(ctx)
    assert await (await own.load(ctx, custom={"own": always})).score_float_value(ANSWERED) == 0.5
    with pytest.raises(InvalidRequestError, match=r"'own' is of type Custom.*brings none.*load\(ctx, custom"):
        await own.load(ctx)
    with pytest.raises(InvalidRequestError, match="brings other"):
        await own.load(ctx, custom={"other": always})
    with pytest.raises(InvalidRequestError, match="needs an async function"):
        await own.load(ctx, custom={"own": lambda _: 1.0})  # type: ignore[dict-item, return-value]


async def test_without_a_control_plane_the_remedy_is_named() -> None:
    ctx: Any = Context(None)
    for attempt in (Grader(grader_key="exact").check, Grader(grader_key="exact").load):
        with pytest.raises(InvalidRequestError, match=r"'exact'.*BaseGrader\.from_function\('exact', grade\)"):
            await attempt(ctx)
