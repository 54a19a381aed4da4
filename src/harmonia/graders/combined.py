"""Several graders as one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from harmonia.client.grades import Grade
from harmonia.client.structured import JsonParseError
from harmonia.errors import InvalidRequestError
from harmonia.graders.base import BaseGrader, Logs
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.log import get_logger
from harmonia.threads import StringThread

log = get_logger(__name__)


class CombinedGrader(BaseGrader[dict[str, Any]]):
    """The weighted mean, or sum, of several graders, which run at the same time.

    A grader that raises IgnoreGradeException or JsonParseError is left out of that conversation's grade, its weight
    too; if all do, IgnoreGradeException. Other errors propagate.

    weights: one per grader; 1 each unless given.
    failure_rate_warning_threshold: `get_logs` warns of a grader that was left out more often than this share.
    """

    def __init__(
        self,
        grader_key: str,
        graders: Sequence[BaseGrader[Any]],
        weights: list[float] | None = None,
        aggregation_method: Literal["sum", "mean"] = "mean",
        failure_rate_warning_threshold: float = 0.2,
    ) -> None:
        super().__init__(grader_key)
        self.graders = list(graders)
        self.weights = _checked(weights, len(self.graders), aggregation_method)
        self.aggregation_method = aggregation_method
        self.failure_rate_warning_threshold = failure_rate_warning_threshold
        self._named = _by_name(self.graders)
        self._weights = dict(zip(self._named, self.weights, strict=True))
        self._graded = 0
        self._failures: Counter[str] = Counter()

    async def grade(self, sample: StringThread) -> Grade:
        """The combined grade; its reasoning names each grader's score."""
        results = await asyncio.gather(*(g.grade(sample) for g in self.graders), return_exceptions=True)
        self._graded += 1
        parts: dict[str, Grade] = {}
        errors: dict[str, BaseException] = {}
        for name, result in zip(self._named, results, strict=True):
            if isinstance(result, Grade):
                parts[name] = result
            elif isinstance(result, IgnoreGradeException | JsonParseError):
                errors[name] = result
            else:
                raise result
        self._failures.update(errors.keys())
        if not parts:
            reasons = "; ".join(f"{name}: {error}" for name, error in errors.items())
            raise IgnoreGradeException(f"no grader of {self.grader_key!r} gave a grade: {reasons}")
        grade = Grade(self._combine(parts), self.grader_key, "\n".join(_line(*part) for part in parts.items()))
        self.add_log({"score": grade.value, **{name: part.value for name, part in parts.items()}})
        return grade

    def _combine(self, parts: dict[str, Grade]) -> float:
        total = sum(self._weights[name] * part.value for name, part in parts.items())
        if self.aggregation_method == "sum":
            return total
        weight = sum(self._weights[name] for name in parts)
        if weight == 0:
            raise IgnoreGradeException(f"only graders of weight 0 gave a grade: {', '.join(parts)}")
        return total / weight

    def get_logs(self, clear: bool = False, log_all_samples: bool = False) -> Logs:
        """The combined scores, then those of each grader and `failure_rate` below its key: `<key>/score/mean`."""
        logs = super().get_logs(False, log_all_samples)
        for name, grader in self._named.items():
            logs.update({f"{name}/{key}": value for key, value in grader.get_logs(False, log_all_samples).items()})
            if self._graded:
                rate = logs[f"{name}/failure_rate"] = self._failures[name] / self._graded
                self._warn(name, rate)
        if clear:
            self.clear_logs()
        return logs

    def _warn(self, name: str, rate: float) -> None:
        if rate > self.failure_rate_warning_threshold:
            log.warning(
                "grader %r was left out of %d of %d grades of %r; it ignored them or its answers did not parse",
                name,
                self._failures[name],
                self._graded,
                self.grader_key,
            )

    def clear_logs(self) -> None:
        """Forget everything that was logged, in each grader too."""
        super().clear_logs()
        self._graded = 0
        self._failures.clear()
        for grader in self.graders:
            grader.clear_logs()


def _line(name: str, grade: Grade) -> str:
    return f"{name}: {grade.value:g}" + (f", {grade.reasoning}" if grade.reasoning else "")


def _by_name(graders: Sequence[BaseGrader[Any]]) -> dict[str, BaseGrader[Any]]:
    """Graders by key; of two with the same key the second is `key-2`."""
    named: dict[str, BaseGrader[Any]] = {}
    seen: Counter[str] = Counter()
    for grader in graders:
        seen[grader.grader_key] += 1
        count = seen[grader.grader_key]
        named[grader.grader_key if count == 1 else f"{grader.grader_key}-{count}"] = grader
    return named


def _checked(weights: list[float] | None, count: int, method: str) -> list[float]:
    if count == 0:
        raise InvalidRequestError("a CombinedGrader needs at least one grader", field="graders")
    if method not in ("sum", "mean"):
        raise InvalidRequestError(f"aggregation_method is 'sum' or 'mean', got {method!r}", field="aggregation_method")
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise InvalidRequestError(f"{len(given)} weights for {count} graders", field="weights")
    if method == "mean" and sum(given) == 0:
        raise InvalidRequestError(f"the weights {given} add up to 0, so there is no mean; use 'sum'", field="weights")
    return given
