"""What a trainer does now and then: score a validation set, show samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonia.client import InferenceModel, StringThread, TokenizedThread
from harmonia.client.evaluation import stringify_thread
from harmonia.client.grades import Grade
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.graders.base import BaseGrader
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.log import get_logger
from harmonia.trainers.batching import async_map_fallible
from harmonia.trainers.samples import prompt_of

log = get_logger(__name__)

_EPSILON = 1e-9
"""Shares of a training are sums of fractions: 0.3 may arrive as 0.29999999999999993."""


class RecipeCallback(ABC):
    """Runs at the start of a training and then each time that another share of it is done. Subclasses write `callback`.

    frequency: that share; 0.1 is every 10 %. force_run_on_exit: run at the end whatever the frequency.
    log_key_prefix: goes before every key that `callback` returns, with a slash.
    """

    def __init__(self, frequency: float, force_run_on_exit: bool = True, log_key_prefix: str | None = None) -> None:
        if not frequency > 0:
            raise InvalidRequestError(
                f"frequency must be more than 0 (0.1 runs every 10 % of the training), got {frequency}",
                field="frequency",
            )
        self.frequency = frequency
        self.force_run_on_exit = force_run_on_exit
        self.log_key_prefix = log_key_prefix
        self.last_call = -1.0
        """The multiple of `frequency` at which it last ran; part of checkpoints."""
        self._has_ended = False

    @abstractmethod
    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Do the work when this share of the training is done; what shall be logged."""

    async def maybe_call(self, current_percentage: float) -> dict[str, Any]:
        """Run `callback` if it is time for it; its metrics, else nothing."""
        if not self._is_due(current_percentage):
            return {}
        self._has_ended = current_percentage >= 1
        self.last_call = math.floor(current_percentage / self.frequency + _EPSILON) * self.frequency
        metrics = await self.callback(current_percentage)
        prefix = "" if self.log_key_prefix is None else f"{self.log_key_prefix}/"
        return {prefix + key: value for key, value in (metrics or {}).items()}

    def _is_due(self, share: float) -> bool:
        if self._has_ended:
            return False
        is_exit = share >= 1 and self.force_run_on_exit
        return is_exit or share - self.last_call >= self.frequency - _EPSILON


async def invoke_callbacks(callbacks: Sequence[RecipeCallback], current_percentage: float) -> dict[str, Any]:
    """Give each callback its chance, one after the other; all their metrics, and how much of the training is done."""
    metrics: dict[str, Any] = {}
    for callback in callbacks:
        added = await callback.maybe_call(current_percentage)
        if taken := metrics.keys() & added.keys():
            log.warning("several callbacks log %s; the last one counts, give them other log keys", sorted(taken))
        metrics |= added
    share = float(current_percentage)
    return metrics | {"training/completion_percentage": share, "completion_percentage": share}


class ValidationLossCallback(RecipeCallback):
    """The mean over threads of the mean -log-probability of their weighted tokens, as `validation/loss`.

    A thread that the model refuses does not count; `validation/num_dropped_samples` says so.
    """

    def __init__(
        self,
        validation_set: list[StringThread],
        model: InferenceModel,
        frequency: float = 0.1,
        log_key: str = "loss",
    ) -> None:
        super().__init__(frequency, log_key_prefix="validation")
        self.validation_set = _not_empty(validation_set, "validation_set")
        self.model = model
        self.log_key = log_key

    async def callback(self, current_percentage: float) -> dict[str, float]:
        """Score the set."""
        losses = await async_map_fallible(self._loss, self.validation_set)
        _require(losses, "scored")
        return {self.log_key: float(np.mean(losses))} | _dropped(self.validation_set, losses)

    async def _loss(self, thread: StringThread) -> float:
        logprobs = await self.model.logprobs_per_token(await self.model.tokenize_thread(thread))
        if not logprobs:
            raise InvalidRequestError("no token of the thread has weight; use with_weight_all_assistant_turns()")
        return -float(np.mean(logprobs))


class GenerateSamplesCallback(RecipeCallback):
    """A table of prompts and what the model answers, as `generation/samples`, with the answers' lengths in tokens.

    It samples as the model object is set. A last assistant turn in a thread is left out: the model answers instead.
    """

    def __init__(
        self, thread_set: list[StringThread], model: InferenceModel, frequency: float, log_key: str = "samples"
    ) -> None:
        super().__init__(frequency, log_key_prefix="generation")
        self.thread_set = _not_empty(thread_set, "thread_set")
        self.model = model
        self.log_key = log_key

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Answer the set."""
        answers = await _answer(self.model, self.thread_set)
        table = Table(["prompt", "answer", "tokens"])
        for tokens, thread in answers:
            table.add_row([stringify_thread(prompt_of(thread)), thread.last_content(), tokens.len_last_turn()])
        return {self.log_key: table} | _lengths(answers) | _dropped(self.thread_set, answers)


class GraderEvalCallback(RecipeCallback):
    """The model's answers to a validation set, scored by a grader: `validation/rewards/*` (the grader's own logs),
    lengths and number of answers. `log_key` replaces `validation`.

    clear_grader_logs: the grader's logs begin anew each time. temperature: 0 is greedy.
    """

    def __init__(
        self,
        validation_set: list[StringThread],
        model: InferenceModel,
        grader: BaseGrader[Any],
        frequency: float,
        log_key: str = "validation",
        clear_grader_logs: bool = True,
        temperature: float = 0.0,
    ) -> None:
        super().__init__(frequency, log_key_prefix=log_key)
        self.validation_set = _not_empty(validation_set, "validation_set")
        self.model = model
        self.grader = grader
        self.clear_grader_logs = clear_grader_logs
        self.temperature = temperature

    async def callback(self, current_percentage: float) -> dict[str, float | Table]:
        """Answer the set and grade the answers."""
        answers = await _answer(self.model.temperature(self.temperature), self.validation_set)
        grades = await async_map_fallible(self._grade, [thread for _, thread in answers])
        _require(grades, "graded")
        logs = self.grader.get_logs(clear=self.clear_grader_logs)
        rewards = {f"rewards/{key}": value for key, value in logs.items()}
        return rewards | _lengths(answers) | _dropped(self.validation_set, grades)

    async def _grade(self, thread: StringThread) -> Grade | None:
        try:
            return await self.grader.grade(thread)
        except IgnoreGradeException:  # does not count, and is no failure
            return None


class CheckpointCallback(RecipeCallback):
    """Does nothing but say so: trainers that can be resumed save checkpoints by themselves, every
    `checkpoint_frequency` of the training. It exists for recipes that pass one, and takes whatever they give it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(frequency=1.0)
        log.warning("CheckpointCallback does nothing: trainers save checkpoints themselves, see checkpoint_frequency")

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}


# --------------------------------------------------------------------------------------------------------- answers

Answer = tuple[TokenizedThread, StringThread]
"""A conversation with the model's turn at its end, in tokens and in text."""


async def _answer(model: InferenceModel, threads: Sequence[StringThread]) -> list[Answer]:
    async def answer(thread: StringThread) -> Answer:
        tokens = await model.generate_tokens(prompt_of(thread))
        return tokens, await model.detokenize_thread(tokens)

    answers: list[Answer] = await async_map_fallible(answer, threads)
    _require(answers, "answered")
    return answers


def _lengths(answers: Sequence[Answer]) -> dict[str, float]:
    lengths = [tokens.len_last_turn() for tokens, _ in answers]
    return {
        "generation_length_mean": float(np.mean(lengths)),
        "generation_length_std": float(np.std(lengths)),
        "num_samples": len(lengths),
    }


def _dropped(given: Sequence[Any], came: Sequence[Any]) -> dict[str, float]:
    """How many failed, where any did; the log holds their errors."""
    dropped = len(given) - len(came)
    return {"num_dropped_samples": dropped} if dropped else {}


def _require(results: Sequence[Any], done: str) -> None:
    if not results:
        raise RuntimeError(f"no sample of the validation could be {done}; the log says why")


def _not_empty(threads: Sequence[StringThread], field: str) -> Sequence[StringThread]:
    if len(threads) == 0:
        raise InvalidRequestError(f"{field} is empty; give at least one thread", field=field)
    return threads
