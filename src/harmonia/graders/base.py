"""The interface of graders, and how to make one from a function, a source text, or the platform's description."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, SupportsFloat, TypeVar

from harmonia.client.grades import Grade
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.graders.logs import MOST_SAMPLES, sample_score_distribution, summarize_scores, to_table
from harmonia.graders.source import GradeFunction, read_grade, require_async
from harmonia.threads import StringThread

if TYPE_CHECKING:
    from harmonia.client.data import AdaptiveGrader
    from harmonia.client.recipe.context import RecipeContext

LogType = TypeVar("LogType", bound=Mapping[str, Any])

Logs = dict[str, float | Table]


class BaseGrader(ABC, Generic[LogType]):
    """Scores conversations. A subclass writes `grade`, and calls `add_log` with a "score" to appear in `get_logs`.

    grader_key: the name under which its scores are logged and stored.
    """

    def __init__(self, grader_key: str) -> None:
        self.grader_key = grader_key
        self._logs: list[LogType] = []

    @abstractmethod
    async def grade(self, sample: StringThread) -> Grade:
        """The grade of a conversation. IgnoreGradeException if it should not count at all."""

    async def score_float_value(self, sample: StringThread) -> float:
        """The number alone."""
        return (await self.grade(sample)).value

    # ------------------------------------------------------------------------------------------------------ logs

    def add_log(self, log_data: LogType) -> None:
        """Remember something about one graded conversation; a number under "score" enters the statistics."""
        self._logs.append(log_data)

    def clear_logs(self) -> None:
        """Forget everything that was logged."""
        self._logs.clear()

    def get_logs(self, clear: bool = False, log_all_samples: bool = False) -> Logs:
        """`score/mean`, `std` (n - 1), `min`, `max` and `count` since the last clear; nothing before the first score.

        log_all_samples: also a table of everything that was logged, as `score/scored_samples`.
        """
        logs: Logs = {**summarize_scores(self._logs)}
        if log_all_samples and self._logs:
            logs["score/scored_samples"] = to_table(self._logs)
        if clear:
            self.clear_logs()
        return logs

    def get_sample_tables(
        self,
        successful_samples: Sequence[Mapping[str, Any]],
        failed_samples: Sequence[Mapping[str, Any]] | None = None,
    ) -> Logs:
        """Tables and counts of what was scored and what was not; at most 15 rows each, spread over the scores."""
        failed = failed_samples or ()
        return {
            "score/scored_samples": to_table(sample_score_distribution(successful_samples)),
            "score/scored_samples_count": len(successful_samples),
            "score/unscored_samples": to_table(failed[-MOST_SAMPLES:]),
            "score/unscored_samples_count": len(failed),
        }

    # ---------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_function(cls, grader_key: str, async_fn: GradeFunction) -> BaseGrader[dict[str, Any]]:
        """A grader from `async def f(thread) -> float`. InvalidRequestError for a function that is not async."""
        return FunctionGrader(grader_key, async_fn)

    @classmethod
    def from_source_code(cls, grader_key: str, source_code: str) -> BaseGrader[dict[str, Any]]:
        """A grader from Python source that defines `async def grade(thread) -> float`; it runs with our rights.

        StringThread, Grade and IgnoreGradeException are known to it without an import.
        """
        return FunctionGrader(grader_key, read_grade(grader_key, source_code))

    @classmethod
    async def from_config(
        cls,
        grader_config: AdaptiveGrader,
        ctx: RecipeContext,
        tp: int | None = None,
        kv_cache_len: int | None = None,
        max_tokens: int | None = None,
        custom: Mapping[str, GradeFunction] | None = None,
    ) -> BaseGrader[Any]:
        """The grader that the platform describes; see `Grader.load`."""
        load = LOADERS[type(grader_config.config)]
        return await load(grader_config, Surroundings(ctx, tp, kv_cache_len, max_tokens, custom or {}))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a grader is loaded into. tp, kv_cache_len and max_tokens (in tokens) are for the model of a judge; custom:
    the functions of graders that live in the recipe, by key."""

    ctx: RecipeContext
    tp: int | None
    kv_cache_len: int | None
    max_tokens: int | None
    custom: Mapping[str, GradeFunction]


LOADERS: dict[type, Callable[[AdaptiveGrader, Surroundings], Awaitable[BaseGrader[Any]]]] = {}
"""How to make the graders of each type of config; `harmonia.graders.loading` fills it."""


class FunctionGrader(BaseGrader[dict[str, Any]]):
    """Scores with `async def f(thread) -> float`; every score is logged."""

    def __init__(self, grader_key: str, async_fn: GradeFunction) -> None:
        super().__init__(grader_key)
        self._function = require_async(grader_key, async_fn)

    async def grade(self, sample: StringThread) -> Grade:
        """The function's score. InvalidRequestError if it gives no number."""
        score = await self._function(sample)
        if not isinstance(score, SupportsFloat) or math.isnan(float(score)):
            raise InvalidRequestError(
                f"grader {self.grader_key!r} gave {score!r}; a score is a number. To leave a conversation out, "
                "raise IgnoreGradeException"
            )
        grade = Grade(score, self.grader_key)
        self.add_log({"score": grade.value})
        return grade
