"""Graders that ask a model: what it is asked, and what its verdict is worth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from harmonia.client.grades import Grade
from harmonia.client.structured import generate_and_validate, get_pydantic_schema, remove_reasoning
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.judges import BinaryJudgeOutput, BinaryJudgeShot, JudgeTemplates
from harmonia.graders.judges.binary import binary_prompt
from harmonia.server.db.graders import Grader
from harmonia.server.db.models import Model
from harmonia.server.services.graders.configs import PREBUILT, PREBUILT_CRITERIA, SAMPLE, JudgeConfig, kept
from harmonia.server.services.models.asking import Asking
from harmonia.threads import StringThread

MAX_TOKENS = 2048
"""Of a verdict."""
_SCHEMA = get_pydantic_schema(BinaryJudgeOutput)

Prompts = Callable[[StringThread], StringThread]
"""The prompt about a conversation."""
Graded = Grade | IgnoreGradeException | HarmoniaError
"""A grade, or why there is none: the grader left the conversation out, or failed on it."""


class Judges:
    """Lets models judge."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def grade(self, grader: Grader, model: Model, threads: Sequence[StringThread]) -> list[Graded]:
        """1 for what passes, 0 for what fails; a conversation to which the criteria do not apply is left out."""
        judge, prompt_of = _Judge(self._asking, model), _prompts(grader)
        graded = (_graded(grader.key, judge, prompt_of, thread) for thread in threads)
        return list(await asyncio.gather(*graded))


@dataclass(frozen=True, slots=True)
class _Judge:
    """A model that answers as `generate_and_validate` wants it."""

    asking: Asking
    model: Model

    async def generate(self, thread: StringThread) -> StringThread:
        answer = await self.asking.answer(self.model, thread, MAX_TOKENS, _SCHEMA)
        return thread.assistant(remove_reasoning(answer))


def check_templates(config: JudgeConfig) -> None:
    """InvalidRequestError says what is wrong with a template, before a conversation meets it."""
    for name, text in (("systemTemplate", config.system_template), ("userTemplate", config.user_template)):
        try:
            JudgeTemplates("", text, config.criteria, _shots(kept(config)["examples"])).prompt(SAMPLE)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{name}: {error.message}", field=name) from error


async def _graded(key: str, judge: _Judge, prompt_of: Prompts, thread: StringThread) -> Graded:
    try:
        _, verdict = await generate_and_validate(judge, prompt_of(thread), BinaryJudgeOutput)
    except HarmoniaError as error:
        return error
    if verdict.score == "NA":
        return IgnoreGradeException(verdict.reasoning)
    return Grade(1.0 if verdict.score == "PASS" else 0.0, key, verdict.reasoning)


def _prompts(grader: Grader) -> Prompts:
    config = grader.config
    if grader.kind == PREBUILT:
        return partial(binary_prompt, criteria=PREBUILT_CRITERIA[config["key"]].text)
    shots = _shots(config["examples"])
    return JudgeTemplates(config["system_template"], config["user_template"], config["criteria"], shots).prompt


def _shots(examples: Sequence[Mapping[str, Any]]) -> list[BinaryJudgeShot]:
    """The examples as they are kept."""
    return [
        BinaryJudgeShot(
            StringThread([*((turn["role"], turn["content"]) for turn in item["input"]), ("assistant", item["output"])]),
            item["reasoning"],
            "PASS" if item["passes"] else "FAIL",
        )
        for item in examples
    ]
