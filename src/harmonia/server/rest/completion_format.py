"""Text completions on the wire: chunks of a stream, and the whole response."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from harmonia.protocol.messages import Delta, TextPrompt, TokenLogprob, TokenPrompt
from harmonia.server.rest.answers import Answer, Gathered, Head
from harmonia.server.rest.schemas.completions import CompletionChoice, CompletionLogprobs, CompletionResponse
from harmonia.server.rest.schemas.fields import UsageReport
from harmonia.server.rest.sse import ChunkEncoder, to_json


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """What a request wants to see of its prompt."""

    prompts: tuple[TextPrompt | TokenPrompt, ...] = ()
    """By prompt; empty when nothing is echoed."""
    prompt_only: bool = False
    """`max_tokens` was 0: drop the one token that the worker had to make."""
    num_top: int | None = None
    """How many likely tokens to report; None for no log-probabilities."""


class CompletionChunks(ChunkEncoder):
    """Chunks of a streamed completion."""

    def __init__(self, head: Head, echo: Echo) -> None:
        self._head, self._echo = head, echo
        common = {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model}
        self._start = b"data: " + to_json({**common, "session_id": head.session_id})[:-1] + b',"choices":['
        self._written = [0] * len(head.completion_ids)
        self._begun = [False] * len(head.completion_ids)

    def chunk(self, delta: Delta) -> bytes:
        """The event for a delta; empty when there is nothing to tell."""
        index = self._head.index(delta)
        first, self._begun[index] = not self._begun[index], True
        if not (first or delta.text or delta.token_ids or delta.finish_reason):
            return b""
        answer = Answer()
        answer.add(delta)
        choice = _choice(self._head, index, answer, self._echo if first else _without_prompt(self._echo))
        if choice.logprobs is not None:
            offset = self._written[index]
            choice.logprobs.text_offset = [offset + own for own in choice.logprobs.text_offset]
        self._written[index] += len(choice.text)
        return self._start + to_json(choice) + b"]}\n\n"

    def usage_chunk(self, usage: UsageReport) -> bytes:
        """The event that reports the token counts."""
        return self._start + b'],"usage":' + to_json(_count(usage, self._echo)) + b"}\n\n"


def completion_response(gathered: Gathered, echo: Echo) -> CompletionResponse:
    """The whole response."""
    head, answers = gathered.head, gathered.answers
    per_prompt = len(answers) // max(1, len(head.choice_of))
    for index, answer in enumerate(answers):
        # The worker reports the prompt once, with the first of its answers.
        first = answers[index - index % per_prompt]
        answer.prompt_token_ids, answer.prompt_logprobs = first.prompt_token_ids, first.prompt_logprobs
    return CompletionResponse(
        id=head.id,
        object="text_completion",
        created=head.created,
        model=head.model,
        session_id=head.session_id,
        choices=[_choice(head, index, answer, echo) for index, answer in enumerate(answers)],
        usage=_count(gathered.usage, echo),
    )


def _choice(head: Head, index: int, answer: Answer, echo: Echo) -> CompletionChoice:
    prompt = _prompt_text(head, index, answer, echo)
    text = "" if echo.prompt_only else answer.text
    prompt_ids = list(answer.prompt_token_ids) if head.return_token_ids and answer.prompt_token_ids else None
    return CompletionChoice(
        index=index,
        completion_id=head.completion_ids[index],
        model=head.model,
        text=prompt + text,
        logprobs=_logprobs(answer, prompt, echo),
        finish_reason="length" if echo.prompt_only and answer.finish_reason else answer.finish_reason,
        token_ids=([] if echo.prompt_only else answer.token_ids) if head.return_token_ids else None,
        prompt_token_ids=prompt_ids,
    )


def _prompt_text(head: Head, index: int, answer: Answer, echo: Echo) -> str:
    if not echo.prompts:
        return ""
    prompt = echo.prompts[index * len(echo.prompts) // len(head.completion_ids)]
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return b"".join(token.token_bytes for token in answer.prompt_logprobs).decode(errors="replace")


def _logprobs(answer: Answer, prompt: str, echo: Echo) -> CompletionLogprobs | None:
    if echo.num_top is None:
        return None
    before: Sequence[TokenLogprob] = answer.prompt_logprobs if echo.prompts else ()
    after: Sequence[TokenLogprob] = () if echo.prompt_only else answer.logprobs
    tokens = [*before, *after]
    # A token that stands before the text, such as a begin-of-text mark, takes no room in it.
    position = -max(0, "".join(token.token for token in before).find(prompt)) if before else 0
    offsets = []
    for token in tokens:
        offsets.append(max(0, position))
        position += len(token.token)
    return CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[_top(token) for token in tokens] if echo.num_top else None,
        text_offset=offsets,
    )


def _top(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    likely = {text: logprob for _, text, _, logprob in token.top}
    return {**likely, token.token: token.logprob}


def _without_prompt(echo: Echo) -> Echo:
    return msgspec.structs.replace(echo, prompts=())


def _count(usage: UsageReport, echo: Echo) -> UsageReport:
    if not echo.prompt_only:
        return usage
    return msgspec.structs.replace(usage, completion_tokens=0, total_tokens=usage.prompt_tokens)
