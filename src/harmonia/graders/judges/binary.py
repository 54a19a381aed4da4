"""A judge that passes or fails an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from harmonia.client.grades import Grade
from harmonia.client.inference import InferenceModel
from harmonia.client.structured import (
    JsonParseError,
    generate_and_validate,
    get_pydantic_schema,
    remove_reasoning,
    render_pydantic_model,
    render_schema,
)
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.turns import separate_context_from_last_user_turn, validate_thread_last_assistant
from harmonia.graders.verdicts import VerdictGrader
from harmonia.threads import StringThread

Score = Literal["PASS", "FAIL", "NA"]

_SYSTEM = """\
You check one answer against one criterion. Look at nothing but what the criterion asks for.
PASS: the answer meets it. FAIL: the answer does not meet it, even in part. NA: the criterion has nothing to do with \
this conversation.
Say in one or two sentences what in the answer decides it, then give the score. Reply with JSON and nothing else:
{form}"""

_USER = """\
Criterion: {criteria}

{context}Question: {question}

Answer: {answer}

Does this answer meet the criterion?"""


class BinaryJudgeOutput(BaseModel):
    """What the judge says; the reasoning comes first, so that the score can follow from it."""

    reasoning: str
    score: Score


class BinaryJudgeShot(NamedTuple):
    """An example: an answered conversation and its verdict, by a criterion of its own or the grader's."""

    thread: StringThread
    reasoning: str | None
    score: Score
    criteria: str | None = None


class BinaryJudgeGrader(VerdictGrader):
    """1 if a model finds that the last answer meets `criteria`, 0 if not, IgnoreGradeException if they do not apply.

    The model answers under a grammar, so any model that follows instructions will do; a reply cut short by its
    `tokens_to_generate` is asked for once more, then JsonParseError. `<think>` blocks of the answer are not shown.

    shots: examples with verdicts, which help small models most.
    temperature: 0 is the same verdict every time.
    """

    def __init__(
        self,
        grader_key: str,
        model: InferenceModel,
        criteria: str,
        shots: list[BinaryJudgeShot] | None = None,
        temperature: float = 0.0,
        grader_id: str | None = None,
    ) -> None:
        super().__init__(grader_key)
        self.criteria = criteria
        self.shots = list(shots or ())
        self.grader_id = grader_id or grader_key
        self.model = model.temperature(temperature).constrained_decoding(get_pydantic_schema(BinaryJudgeOutput), "json")

    def prompt(self, sample: StringThread) -> StringThread:
        """What the model is asked. InvalidRequestError for a conversation without an answer at its end."""
        return binary_prompt(sample, self.criteria, self.shots)

    async def grade(self, sample: StringThread) -> Grade:
        """The verdict and its reasoning. Errors: those of `prompt`; JsonParseError; IgnoreGradeException."""
        try:
            _, verdict = await generate_and_validate(self.model, self.prompt(sample), BinaryJudgeOutput)
        except JsonParseError as error:
            self.unscored(sample, error.message)
            raise
        if verdict.score == "NA":
            self.unscored(sample, f"not applicable: {verdict.reasoning}")
            raise IgnoreGradeException(f"{self.grader_key!r} does not apply: {verdict.reasoning}")
        return self.scored(sample, 1.0 if verdict.score == "PASS" else 0.0, verdict.reasoning)


def binary_prompt(sample: StringThread, criteria: str, shots: Sequence[BinaryJudgeShot] = ()) -> StringThread:
    """What a model is asked. InvalidRequestError for a conversation without an answer at its end."""
    prompt = StringThread().system(_SYSTEM.format(form=render_schema(BinaryJudgeOutput)))
    for shot in shots:
        verdict = BinaryJudgeOutput(reasoning=shot.reasoning or "", score=shot.score)
        question = _question(shot.thread, shot.criteria or criteria)
        prompt = prompt.user(question).assistant(render_pydantic_model(verdict))
    return prompt.user(_question(sample, criteria))


def _question(thread: StringThread, criteria: str) -> str:
    validate_thread_last_assistant(thread)
    turns, question = separate_context_from_last_user_turn(thread)
    context = "".join(f"{turn.role}: {turn.content}\n\n" for turn in turns)
    return _USER.format(
        criteria=criteria,
        context=f"Earlier in the conversation:\n{context}" if context else "",
        question=question or "(none)",
        answer=remove_reasoning(thread.last_content()),
    )
