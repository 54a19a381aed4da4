"""Chat answers on the wire: chunks of a stream, and the whole response."""

from __future__ import annotations

from harmonia.protocol.messages import Delta, TokenLogprob
from harmonia.server.rest.answers import Answer, Gathered, Head
from harmonia.server.rest.schemas.chat import (
    ChatAnswer,
    ChatChoice,
    ChatLogprob,
    ChatLogprobs,
    ChatResponse,
    FunctionCall,
    ToolCallReport,
    TopLogprob,
)
from harmonia.server.rest.schemas.fields import UsageReport
from harmonia.server.rest.sse import ChunkEncoder, to_json

_PLAIN_END = b'},"logprobs":null,"finish_reason":null}]}\n\n'


class ChatChunks(ChunkEncoder):
    """Chunks whose deltas each carry id, role and content, as `adaptive_sdk` requires.

    merging: the caller is one of OpenAI's clients, which append equal string fields of deltas to each other; it gets id
    and role once per choice.
    """

    def __init__(self, head: Head, merging: bool) -> None:
        self._head = head
        common = {"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model}
        self._start = b"data: " + to_json({**common, "session_id": head.session_id})[:-1] + b',"choices":['
        self._first = [self._open(index, named=True) for index in range(len(head.completion_ids))]
        self._later = [self._open(index, named=not merging) for index in range(len(head.completion_ids))]
        self._begun = [False] * len(head.completion_ids)
        self._num_calls = [0] * len(head.completion_ids)

    def _open(self, index: int, named: bool) -> bytes:
        completion_id = self._head.completion_ids[index]
        choice = to_json({"index": index, "completion_id": completion_id, "model": self._head.model})[:-1]
        delta = to_json({"id": completion_id, "role": "assistant"})[:-1] + b"," if named else b"{"
        return self._start + choice + b',"delta":' + delta + b'"content":'

    def chunk(self, delta: Delta) -> bytes:
        """The event for a delta; empty when there is nothing to tell."""
        index = self._head.index(delta)
        begun = self._begun[index]
        self._begun[index] = True
        start = self._later[index] if begun else self._first[index]
        if not (delta.finish_reason or delta.logprobs or delta.tool_calls or self._head.return_token_ids):
            return start + to_json(delta.text) + _PLAIN_END if delta.text or not begun else b""
        parts = [start, to_json(delta.text)]
        if delta.tool_calls:
            parts += [b',"tool_calls":', to_json(self._calls(index, delta))]
        parts += [b'},"logprobs":', to_json(chat_logprobs(delta.logprobs))]
        parts += [b',"finish_reason":', to_json(delta.finish_reason)]
        if self._head.return_token_ids:
            parts += [b',"token_ids":', to_json(delta.token_ids)]
        parts.append(b"}]")
        if self._head.return_token_ids and delta.prompt_token_ids:
            parts += [b',"prompt_token_ids":', to_json(delta.prompt_token_ids)]
        return b"".join([*parts, b"}\n\n"])

    def _calls(self, index: int, delta: Delta) -> list[dict[str, object]]:
        first = self._num_calls[index]
        self._num_calls[index] += len(delta.tool_calls)
        return [
            {
                "index": first + position,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for position, call in enumerate(delta.tool_calls)
        ]

    def usage_chunk(self, usage: UsageReport) -> bytes:
        """The event that reports the token counts."""
        return self._start + b'],"usage":' + to_json(usage) + b"}\n\n"


def chat_response(gathered: Gathered) -> ChatResponse:
    """The whole response."""
    head, answers = gathered.head, gathered.answers
    prompt_ids = list(answers[0].prompt_token_ids) if head.return_token_ids else None
    return ChatResponse(
        id=head.id,
        object="chat.completion",
        created=head.created,
        model=head.model,
        session_id=head.session_id,
        choices=[_choice(head, index, answer) for index, answer in enumerate(answers)],
        usage=gathered.usage,
        prompt_token_ids=prompt_ids,
    )


def _choice(head: Head, index: int, answer: Answer) -> ChatChoice:
    calls = [
        ToolCallReport(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in answer.tool_calls
    ]
    completion_id = head.completion_ids[index]
    return ChatChoice(
        index=index,
        completion_id=completion_id,
        model=head.model,
        message=ChatAnswer(id=completion_id, role="assistant", content=answer.text, tool_calls=calls or None),
        logprobs=chat_logprobs(answer.logprobs),
        finish_reason=answer.finish_reason,
        token_ids=answer.token_ids if head.return_token_ids else None,
    )


def chat_logprobs(tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
    """OpenAI's form of log-probabilities; None when there are none."""
    if not tokens:
        return None
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=token.token,
                logprob=token.logprob if token.logprob is not None else 0.0,
                bytes=list(token.token_bytes),
                top_logprobs=[
                    TopLogprob(token=text, logprob=logprob, bytes=list(raw)) for _, text, raw, logprob in token.top
                ],
            )
            for token in tokens
        ]
    )
