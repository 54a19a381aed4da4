"""A judge that passes or fails an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from harmonia.client.evaluation import stringify_thread
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
from harmonia.graders.base import BaseGrader, Logs
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.logs import FailedJudgeLog, SuccessJudgeLog, summarize_scores, to_table
from harmonia.graders.turns import separate_context_from_last_user_turn, validate_thread_last_assistant
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


class BinaryJudgeGrader(BaseGrader[SuccessJudgeLog | FailedJudgeLog]):
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

    async def grade(self, sample: StringThread) -> Grade:
        """The verdict and its reasoning. InvalidRequestError for a conversation without an answer at its end."""
        prompt, shown = binary_prompt(sample, self.criteria, self.shots), stringify_thread(sample)
        try:
            _, verdict = await generate_and_validate(self.model, prompt, BinaryJudgeOutput)
        except JsonParseError as error:
            self.add_log(FailedJudgeLog(prompt=shown, error=error.message))
            raise
        if verdict.score == "NA":
            self.add_log(FailedJudgeLog(prompt=shown, error=f"not applicable: {verdict.reasoning}"))
            raise IgnoreGradeException(f"{self.grader_key!r} does not apply: {verdict.reasoning}")
        score = 1.0 if verdict.score == "PASS" else 0.0
        self.add_log(SuccessJudgeLog(prompt=shown, reasoning=verdict.reasoning, score=score))
        return Grade(score, self.grader_key, verdict.reasoning)

    def get_logs(self, clear: bool = False, log_all_samples: bool = False) -> Logs:
        """The statistics of all graders, and tables of what was scored and what was not: 15 rows each, or all."""
        scored = [log for log in self._logs if "score" in log]
        unscored = [log for log in self._logs if "score" not in log]
        logs: Logs = {**summarize_scores(scored)}
        if self._logs:
            logs.update(self.get_sample_tables(scored, unscored))
        if self._logs and log_all_samples:
            logs.update({"score/scored_samples": to_table(scored), "score/unscored_samples": to_table(unscored)})
        if clear:
            self.clear_logs()
        return logs


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
