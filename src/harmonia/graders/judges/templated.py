"""Judges that are asked in words of one's own: two Handlebars templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harmonia.client.inference import InferenceModel
from harmonia.client.structured import remove_reasoning, render_schema
from harmonia.graders.judges.binary import BinaryJudgeGrader, BinaryJudgeOutput, BinaryJudgeShot
from harmonia.graders.judges.templates import Template
from harmonia.graders.turns import separate_context_from_last_user_turn, validate_thread_last_assistant
from harmonia.threads import StringThread, StringTurn


class JudgeTemplates:
    """What a judge is told and asked. The system template may come out empty; then it is told nothing.

    Both may name `criteria`, `examples` (each with `context_str`, `user_question`, `completion` and `output_json`),
    `turns`, `context_turns`, `context_turns_without_last_user` (lists of `role` and `content`), `context_str`,
    `context_str_without_last_user`, `last_user_turn_content`, `completion` and `output_schema`.

    shots: the examples. InvalidRequestError for a template that cannot be read.
    """

    def __init__(self, system: str, user: str, criteria: str, shots: Sequence[BinaryJudgeShot] = ()) -> None:
        self.criteria = criteria
        self._system, self._user = Template(system), Template(user)
        self._always = {
            "criteria": criteria,
            "examples": [_example(shot) for shot in shots],
            "output_schema": render_schema(BinaryJudgeOutput),
        }

    def prompt(self, sample: StringThread) -> StringThread:
        """What the judge is asked about a conversation. InvalidRequestError if that does not end with an answer, or a
        template names what is not there."""
        validate_thread_last_assistant(sample)
        values = {**self._always, **_values(sample)}
        system, prompt = self._system.render(values), StringThread()
        if system.strip():
            prompt = prompt.system(system)
        return prompt.user(self._user.render(values))


class TemplatedPromptJudgeGrader(BinaryJudgeGrader):
    """A binary judge whose prompt is made of templates, as those of the platform are; see `BinaryJudgeGrader`."""

    def __init__(
        self, grader_key: str, model: InferenceModel, templates: JudgeTemplates, temperature: float = 0.0
    ) -> None:
        super().__init__(grader_key, model, templates.criteria, temperature=temperature)
        self.templates = templates

    def prompt(self, sample: StringThread) -> StringThread:
        """The rendered templates."""
        return self.templates.prompt(sample)


def _values(sample: StringThread) -> dict[str, Any]:
    turns = sample.get_turns()
    before, question = separate_context_from_last_user_turn(sample, include_system_prompt=True)
    return {
        "turns": [turn._asdict() for turn in turns],
        "context_turns": [turn._asdict() for turn in turns[:-1]],
        "context_str": _shown(turns[:-1]),
        "context_turns_without_last_user": [turn._asdict() for turn in before],
        "context_str_without_last_user": _shown(before),
        "last_user_turn_content": question or "",
        "completion": remove_reasoning(sample.last_content()),
    }


def _example(shot: BinaryJudgeShot) -> dict[str, Any]:
    *asked, answer = shot.thread.get_turns()
    before, question = separate_context_from_last_user_turn(
        StringThread([(turn.role, turn.content) for turn in asked]), include_system_prompt=True
    )
    verdict = BinaryJudgeOutput(reasoning=shot.reasoning or "", score=shot.score)
    return {
        "context_str": _shown(before),
        "user_question": question or "",
        "completion": answer.content,
        "output_json": verdict.model_dump_json(),
    }


def _shown(turns: Sequence[StringTurn]) -> str:
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
