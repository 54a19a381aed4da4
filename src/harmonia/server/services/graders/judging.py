"""Graders that ask a model: what it is asked, and what its verdict is worth."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmonia.client.grades import Grade
from harmonia.client.structured import generate_and_validate, get_pydantic_schema, remove_reasoning, render_schema
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.judges.binary import BinaryJudgeOutput, binary_prompt
from harmonia.graders.judges.templates import Template
from harmonia.graders.turns import separate_context_from_last_user_turn, validate_thread_last_assistant
from harmonia.server.db.graders import Grader
from harmonia.server.db.models import Model
from harmonia.server.services.graders.configs import PREBUILT, PREBUILT_CRITERIA, JudgeConfig
from harmonia.server.services.models.asking import Asking
from harmonia.threads import StringThread, StringTurn

MAX_TOKENS = 2048
"""Of a verdict."""
_SCHEMA = get_pydantic_schema(BinaryJudgeOutput)

Graded = Grade | IgnoreGradeException | HarmoniaError
"""A grade, or why there is none: the grader left the conversation out, or failed on it."""


class Judges:
    """Lets models judge."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def grade(self, grader: Grader, model: Model, threads: Sequence[StringThread]) -> list[Graded]:
        """1 for what passes, 0 for what fails; a conversation to which the criteria do not apply is left out."""
        return list(await asyncio.gather(*(self._grade(grader, model, thread) for thread in threads)))

    async def _grade(self, grader: Grader, model: Model, thread: StringThread) -> Graded:
        try:
            prompt = _prompt(grader, thread)
            _, verdict = await generate_and_validate(_Judge(self._asking, model), prompt, BinaryJudgeOutput)
        except HarmoniaError as error:
            return error
        if verdict.score == "NA":
            return IgnoreGradeException(verdict.reasoning)
        return Grade(1.0 if verdict.score == "PASS" else 0.0, grader.key, verdict.reasoning)


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
    values = _values(vars_of(config), StringThread([("user", "?"), ("assistant", "!")]))
    for name, text in (("systemTemplate", config.system_template), ("userTemplate", config.user_template)):
        try:
            Template(text).render(values)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{name}: {error.message}", field=name) from error


def vars_of(config: JudgeConfig) -> dict[str, Any]:
    """The criteria and examples as they are kept."""
    examples = [
        {
            "input": [{"role": turn.role, "content": turn.content} for turn in example.input],
            "output": example.output,
            "passes": example.passes,
            "reasoning": example.reasoning,
        }
        for example in config.examples
    ]
    return {"criteria": config.criteria, "examples": examples}


def _prompt(grader: Grader, thread: StringThread) -> StringThread:
    if grader.kind == PREBUILT:
        return binary_prompt(thread, PREBUILT_CRITERIA[grader.config["key"]][1])
    validate_thread_last_assistant(thread)
    values = _values(grader.config, thread)
    prompt = StringThread()
    system = Template(grader.config["system_template"]).render(values)
    if system.strip():
        prompt = prompt.system(system)
    return prompt.user(Template(grader.config["user_template"]).render(values))


def _values(kept: Mapping[str, Any], thread: StringThread) -> dict[str, Any]:
    """What templates may name."""
    before, question = separate_context_from_last_user_turn(thread, include_system_prompt=True)
    return {
        "criteria": kept["criteria"],
        "examples": [_example(example) for example in kept["examples"]],
        "context_str_without_last_user": _shown(before),
        "last_user_turn_content": question or "",
        "completion": remove_reasoning(thread.last_content()),
        "output_schema": render_schema(BinaryJudgeOutput),
    }


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    thread = StringThread([(turn["role"], turn["content"]) for turn in example["input"]])
    before, question = separate_context_from_last_user_turn(thread, include_system_prompt=True)
    verdict = BinaryJudgeOutput(reasoning=example["reasoning"] or "", score="PASS" if example["passes"] else "FAIL")
    return {
        "context_str": _shown(before),
        "user_question": question or "",
        "completion": example["output"],
        "output_json": verdict.model_dump_json(),
    }


def _shown(turns: Sequence[StringTurn]) -> str:
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
