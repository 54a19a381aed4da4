"""Graders that the control plane runs for a recipe: servers outside, and judges that are external models."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmonia.client.grades import Grade
from harmonia.client.recipe.control_plane import ControlPlane
from harmonia.client.recipe.grader_records import Verdict
from harmonia.client.structured import JsonParseError
from harmonia.errors import HarmoniaError, InvalidRequestError, from_code
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.verdicts import VerdictGrader
from harmonia.threads import StringThread

MOST_TOGETHER, MOST_CHARACTERS = 32, 4 << 20
"""Of one request: conversations, and what they hold. A single one may be longer."""
_AT_ONCE = 4
"""Requests on their way at the same time."""


class PlatformGrader(VerdictGrader):
    """Asks the control plane, which holds keys and checks addresses that jobs do not get.

    Conversations that are graded at the same time travel together, with their metadata. What the grader says beside
    the score is the grade's reasoning; of a server outside, that is its metadata as JSON.
    """

    def __init__(self, grader_key: str, control_plane: ControlPlane) -> None:
        super().__init__(grader_key)
        self._plane = control_plane
        self._waiting: deque[_Question] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def grade(self, sample: StringThread) -> Grade:
        """The grade. IgnoreGradeException if the grader leaves the conversation out, JsonParseError if its judge cannot
        be read; InvalidRequestError, UnavailableError, DeadlineExceededError as the grader failed."""
        verdict = await self._ask(_request(sample))
        if verdict.value is not None:
            return self.scored(sample, verdict.value, verdict.reasoning)
        error = _error(self.grader_key, verdict)
        self.unscored(sample, error.message)
        raise error

    async def _ask(self, request: Mapping[str, Any]) -> Verdict:
        question = _Question(request, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if len(self._senders) < _AT_ONCE:
            # It begins in the loop's next turn, when all that were asked in this one wait.
            sender = asyncio.create_task(self._send())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await question.answer

    async def _send(self) -> None:
        while batch := self._next_batch():
            answers = [question.answer for question in batch]
            try:
                verdicts = await self._plane.grade(self.grader_key, [question.request for question in batch])
            except HarmoniaError as error:
                _settle(answers, [Verdict(error=error.message, code=error.code)] * len(answers))
            except BaseException:
                for answer in answers:
                    answer.cancel()
                raise
            else:
                _settle(answers, verdicts)

    def _next_batch(self) -> list[_Question]:
        batch: list[_Question] = []
        num_characters = 0
        while self._waiting and len(batch) < MOST_TOGETHER:
            num_characters += self._waiting[0].num_characters
            if batch and num_characters > MOST_CHARACTERS:
                break
            question = self._waiting.popleft()
            if not question.answer.done():  # whoever asked may have left
                batch.append(question)
        return batch


@dataclass(frozen=True, slots=True)
class _Question:
    request: Mapping[str, Any]
    answer: asyncio.Future[Verdict]

    @property
    def num_characters(self) -> int:
        return len(json.dumps(self.request))


def _settle(answers: list[asyncio.Future[Verdict]], verdicts: list[Verdict]) -> None:
    for answer, verdict in zip(answers, verdicts, strict=True):
        if not answer.done():
            answer.set_result(verdict)


def _error(grader_key: str, verdict: Verdict) -> HarmoniaError:
    what = verdict.error or "it gave neither a score nor a reason"
    if verdict.ignored:
        return IgnoreGradeException(f"{grader_key!r} leaves this conversation out: {what}")
    if verdict.code == JsonParseError.code:
        return JsonParseError(what, "")
    return from_code(verdict.code or HarmoniaError.code, what)


def _request(sample: StringThread) -> dict[str, Any]:
    """As the control plane reads it. What JSON has no word for, such as a path, becomes text."""
    try:
        metadata = json.loads(json.dumps(sample.metadata, default=str, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"the metadata of a conversation cannot be sent to its grader: {error}; keep JSON's kinds of values there",
            field="metadata",
        ) from error
    messages = [{"role": role, "content": content} for role, content in sample.get_turns()]
    return {"messages": messages, "metadata": metadata if isinstance(metadata, dict) else None}
