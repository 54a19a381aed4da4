"""Chat, completions and embeddings: what is asked and answered, in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

import msgspec
from pydantic import BaseModel

from harmonia.errors import HarmoniaError
from harmonia.sdk.answers import error_in_stream

_DONE = b"[DONE]"

Message = Mapping[str, Any]
"""`{"role": ..., "content": text or parts}`, with `name`, `completion_id` and `metadata` if needed."""
ResponseFormat = Mapping[str, Any] | type[BaseModel]
"""OpenAI's `response_format`, or a pydantic class whose JSON the answer shall be."""


class GenerationOptions(TypedDict, total=False):
    """What an answer may be asked with; what is left out is the server's choice."""

    n: int
    """Answers."""
    max_tokens: int
    min_tokens: int
    stop: Sequence[str]
    """Texts at which an answer ends."""
    seed: int
    """The same gives the same answer."""
    temperature: float
    """0 takes the most likely token."""
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    session_id: str
    """Conversation whose cache is used again."""
    user: str
    """Id of the user that is asked for."""
    labels: Mapping[str, str]
    """Words that the interaction can be found by."""
    metadata: Mapping[str, str]
    """Another name of `labels`."""
    tags: Sequence[str]
    store: bool
    """False: keep no interaction."""
    max_ttft_ms: int
    """Longest wait for the first token, queue included."""
    ab_campaign: str
    """Take part in this A/B test."""
    stream_options: Mapping[str, bool]
    """`{"include_usage": True}`: the last chunk counts tokens."""


class ChatOptions(GenerationOptions, total=False):
    """What a chat may be asked with besides."""

    response_format: ResponseFormat
    tools: Sequence[Mapping[str, Any]]
    """Functions as OpenAI has them, or `{"id": ..., "enabled": ...}` for tools of the project."""
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    logprobs: bool
    top_logprobs: int
    system_prompt_args: Mapping[str, Any]
    """Fill the project's system prompt."""
    chat_template_kwargs: Mapping[str, Any]


class CompletionOptions(GenerationOptions, total=False):
    """What a continuation may be asked with besides."""

    logprobs: int
    """Of this many most likely tokens at each place."""
    echo: bool
    """Give the prompt back, too."""


class PromptTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Where a prompt's tokens came from."""

    cached_tokens: int = 0
    """Taken from the cache instead of being computed."""


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a draft proposed."""

    accepted_prediction_tokens: int = 0
    """Those that were right, and so are part of the answer."""
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokens | None = None
    completion_tokens_details: Predictions | None = None
    """None where no draft proposed anything."""

    @property
    def acceptance_rate(self) -> float | None:
        """Share of a draft's proposals that were right; None without any."""
        told = self.completion_tokens_details
        proposed = 0 if told is None else told.accepted_prediction_tokens + told.rejected_prediction_tokens
        return None if told is None or not proposed else told.accepted_prediction_tokens / proposed


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said."""

    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers; `completion_id` is what feedback is given on."""

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    completion_id: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer; `created` in seconds."""

    id: str
    choices: list[ChatChoice]
    created: float
    usage: Usage | None = None
    session_id: str | None = None
    model: str | None = None


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What came since the chunk before."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of one of the answers."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    completion_id: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer; the one that counts tokens has no choices."""

    id: str
    choices: list[ChunkChoice]
    created: float
    usage: Usage | None = None
    session_id: str | None = None
    model: str | None = None


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the continuations, or a piece of it."""

    index: int
    text: str
    finish_reason: str | None = None
    completion_id: str | None = None
    logprobs: dict[str, Any] | None = None


class CompletionResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A continuation of a text, or a piece of it."""

    id: str
    choices: list[CompletionChoice]
    created: float
    usage: Usage | None = None
    model: str | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector, as numbers, or as Base64 of its float32s."""

    index: int
    embedding: list[float] | str


class EmbeddingResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors of a text."""

    data: list[Embedding]
    usage: Usage | None = None


EncodingFormat = Literal["Float", "Base64"]


def body_of(options: Mapping[str, Any], **more: object) -> dict[str, Any]:
    """A request's body: what is None is left out, a pydantic class becomes its schema."""
    body = {name: value for name, value in {**options, **more}.items() if value is not None}
    wanted = body.get("response_format")
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        schema = {"name": wanted.__name__, "schema": wanted.model_json_schema(), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def model_address(project: str, model: str | None) -> str:
    """How a request names a model: the project alone takes its default model."""
    return project if model is None else f"{project}/{model}"


class Events:
    """Server-sent events out of the bytes of a stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self.done = False

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of the events that end in what was received; raises what an event reports."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is None or self.done:
                continue
            if event == _DONE:
                self.done = True
            elif (error := error_in_stream(event)) is not None:
                raise error
            else:
                yield event

    def _line(self, line: bytes) -> bytes | None:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = self._data, []
        return b"\n".join(data) if data else None


def cut_off() -> HarmoniaError:
    """For a stream that ended without saying so."""
    return HarmoniaError("the stream ended before the answer did; ask again")
