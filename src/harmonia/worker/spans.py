"""The parts of one request as a trace shows them: made of a few moments, and told when the request is over.

Nothing is told per token: what the steps between the first and the last brought is counted.
"""

from __future__ import annotations

import time

from harmonia import tracing
from harmonia.engine.requests import SequenceOutput
from harmonia.protocol.messages import Embed, Generate, Usage
from harmonia.worker.link import NO_TURN, Turn


class RequestSpans:
    """What a traced request met in this worker."""

    def __init__(self, request: Generate | Embed, arrival_s: float) -> None:
        self._parent = request.trace
        self._name = "generate" if isinstance(request, Generate) else "embed"
        self._model = request.model
        self._arrival_s = arrival_s
        self._given_s = time.monotonic()
        self._ran_s = 0.0
        self._first: tuple[Turn, int] | None = None
        """The step that brought the first output, and how many sequences were in it."""
        self._last = NO_TURN, 0
        self._num_steps = 0
        self._longest_s = 0.0
        self._version = 0
        self._cached_tokens = 0

    @staticmethod
    def of(request: Generate | Embed, arrival_s: float) -> RequestSpans | None:
        """Of a request whose prompt was just made tokens; None where it is not traced."""
        return RequestSpans(request, arrival_s) if request.trace and tracing.is_on() else None

    def note(self, output: SequenceOutput, turn: Turn, num_sequences: int) -> None:
        """One of its sequences gained something in a step that brought something for so many."""
        if self._first is None:
            self._first = turn, num_sequences
            self._ran_s = max(self._given_s, self._arrival_s + output.queue_s)
            self._cached_tokens = output.cached_tokens
            self._version = output.version
        if turn is not self._last[0]:  # the first of its answers in this step
            self._last = turn, num_sequences
            self._num_steps += 1
            self._longest_s = max(self._longest_s, turn.ended_s - turn.began_s)

    def end(self, usage: Usage | None = None, error: str = "") -> None:
        """Tell everything. usage: of a request that was answered; error: a short name of why it was not."""
        ended_s = time.monotonic()
        told: dict[str, str | int] = {"gen_ai.request.model": self._model}
        if usage is not None:
            told |= {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "harmonia.cached_tokens": self._cached_tokens,
                "harmonia.version": self._version,
            }
        whole = tracing.record(self._parent, self._name, (self._arrival_s, ended_s), told, error)
        tracing.record(whole, "tokenize", (self._arrival_s, self._given_s), {})
        if self._first is None:
            tracing.record(whole, "queue", (self._given_s, ended_s), {})
            return
        first_s = self._first[0].ended_s or ended_s
        tracing.record(whole, "queue", (self._given_s, self._ran_s), {})
        cached = {"harmonia.cached_tokens": self._cached_tokens}
        prefill = tracing.record(whole, "prefill", (self._ran_s, first_s), cached)
        _record_step(prefill, *self._first)
        if self._num_steps > 1:
            decode = tracing.record(whole, "decode", (first_s, ended_s), self._decoding())
            _record_step(decode, *self._last)

    def _decoding(self) -> tracing.Attributes:
        return {
            "harmonia.steps": self._num_steps - 1,
            "harmonia.longest_step_ms": 1000 * self._longest_s,
            "harmonia.version": self._version,
        }


def _record_step(parent: str, turn: Turn, num_sequences: int) -> None:
    """An engine step serves many requests: its number tells which traces show the same one."""
    if turn.number:
        told = {"harmonia.step": turn.number, "harmonia.sequences": num_sequences}
        tracing.record(parent, "engine step", (turn.began_s, turn.ended_s), told)
