"""Puts the deltas of a request together into complete answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Protocol

import msgspec

from harmonia.protocol.client import Event
from harmonia.protocol.messages import Delta, Finished, Generate, TokenLogprob, ToolCall
from harmonia.server.rest.schemas.fields import CompletionTokensDetails, PromptTokensDetails, UsageReport

DeltaMap = Callable[[Delta], Delta]


class Source(Protocol):
    """Events of requests that were sent: a worker's `Stream`, or an external model's."""

    async def next_events(self) -> list[Event]:
        """What came since the last call, at least one event; empty at the end. Raises what a request failed with."""
        ...

    def cancel(self) -> None:
        """Give up what is still running; safe to call at any time."""
        ...


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every chunk and response of one request repeats."""

    id: str
    created: int
    model: str
    session_id: str
    choice_of: dict[str, int]
    """Request id to the index of its first choice."""
    completion_ids: tuple[str, ...]
    """By index of the choice."""
    return_token_ids: bool = False

    def index(self, delta: Delta) -> int:
        """The choice to which a delta belongs."""
        return self.choice_of[delta.id] + delta.index


def head_of(kind: str, requests: tuple[Generate, ...], model: str, return_token_ids: bool) -> Head:
    """The head for some requests whose choices follow each other; `kind` begins its id, `model` is the name to show."""
    first, choice_of = 0, {}
    for request in requests:
        choice_of[request.id] = first
        first += request.n
    return Head(
        id=f"{kind}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        session_id=requests[0].session_id or str(uuid.uuid4()),
        choice_of=choice_of,
        completion_ids=tuple(str(uuid.uuid4()) for _ in range(first)),
        return_token_ids=return_token_ids,
    )


class Answer:
    """One choice, growing."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.tool_calls: list[ToolCall] = []
        self.finish_reason: str | None = None
        self.prompt_token_ids: tuple[int, ...] = ()
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self.drafted_tokens = self.accepted_tokens = 0

    @property
    def text(self) -> str:
        """What was generated so far."""
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.tool_calls.extend(delta.tool_calls)
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.prompt_token_ids = delta.prompt_token_ids or self.prompt_token_ids
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.drafted_tokens += delta.drafted_tokens
        self.accepted_tokens += delta.accepted_tokens


class Gathered:
    """All answers of one HTTP request, growing, and what they took."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.answers = [Answer() for _ in head.completion_ids]
        self.timings_ms: dict[str, float] = {}
        """`queue`, `ttft` and `total` of the request that took longest."""
        self._prompt = self._completion = self._cached = self._drafted = self._accepted = 0

    def add(self, delta: Delta) -> None:
        """Append a delta to its answer."""
        self.answers[self.head.index(delta)].add(delta)

    def finish(self, event: Finished) -> None:
        """Count one of the requests, which is complete."""
        self._prompt += event.usage.prompt_tokens
        self._completion += event.usage.completion_tokens
        self._cached += event.usage.cached_tokens
        self._drafted += event.usage.drafted_tokens
        self._accepted += event.usage.accepted_tokens
        for name, value in event.timings_ms.items():
            self.timings_ms[name] = max(value, self.timings_ms.get(name, 0.0))

    @property
    def usage(self) -> UsageReport:
        """The sums as OpenAI's `usage`."""
        return UsageReport(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached),
            completion_tokens_details=self._predictions if self._drafted else None,
        )

    @property
    def _predictions(self) -> CompletionTokensDetails:
        return CompletionTokensDetails(
            accepted_prediction_tokens=self._accepted, rejected_prediction_tokens=self._drafted - self._accepted
        )


async def collect(source: Source, head: Head, change: DeltaMap | None) -> Gathered:
    """Wait for the end of a stream and return all its answers, each delta passed through `change`."""
    gathered = Gathered(head)
    while events := await source.next_events():
        for event in events:
            if isinstance(event, Finished):
                gathered.finish(event)
            else:
                gathered.add(change(event) if change is not None else event)
    return gathered
