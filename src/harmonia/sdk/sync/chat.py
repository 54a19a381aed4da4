# Made by scripts/generate of src/harmonia/sdk/aio/chat.py: change that file, then run the script.
"""Chat, completions and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

from harmonia.sdk.call import REST, Call
from harmonia.sdk.conversation import (
    ChatChunk,
    ChatOptions,
    ChatResponse,
    CompletionOptions,
    CompletionResponse,
    EmbeddingResponse,
    EncodingFormat,
    Message,
    body_of,
    model_address,
)
from harmonia.sdk.sync.resource import Resource
from harmonia.sdk.sync.transport import Stream

_STREAM = {"accept": "text/event-stream", "cache-control": "no-store"}


class Chat(Resource):
    """`adaptive.chat`."""

    @overload
    def create(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        project: str | None = None,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatResponse: ...

    @overload
    def create(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        project: str | None = None,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Stream[ChatChunk]: ...

    def create(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        project: str | None = None,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> ChatResponse | Stream[ChatChunk]:
        """Ask a model of a project, its default one unless named; with `stream` the answer comes in pieces."""
        address = model_address(self._project(project), model)
        body = body_of(options, model=address, messages=messages, stream=stream)
        call = Call("POST", f"{REST}/chat/completions", json=body, headers=_STREAM if stream else {})
        if stream:
            return self._transport.stream(call, ChatChunk)
        return self._transport.fetch(call, ChatResponse)


class Completions(Resource):
    """`adaptive.completions`: texts continued."""

    @overload
    def create(
        self,
        prompt: str,
        model: str | None = None,
        project: str | None = None,
        stream: Literal[False] = False,
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse: ...

    @overload
    def create(
        self,
        prompt: str,
        model: str | None = None,
        project: str | None = None,
        *,
        stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> Stream[CompletionResponse]: ...

    def create(
        self,
        prompt: str,
        model: str | None = None,
        project: str | None = None,
        stream: bool = False,
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse | Stream[CompletionResponse]:
        """Let a model of a project, its default one unless named, continue a text as it stands."""
        address = model_address(self._project(project), model)
        body = body_of(options, model=address, prompt=prompt, stream=stream)
        call = Call("POST", f"{REST}/completions", json=body, headers=_STREAM if stream else {})
        if stream:
            return self._transport.stream(call, CompletionResponse)
        return self._transport.fetch(call, CompletionResponse)


class Embeddings(Resource):
    """`adaptive.embeddings`."""

    def create(
        self,
        input: str | Sequence[str],
        model: str | None = None,
        project: str | None = None,
        encoding_format: EncodingFormat = "Float",
        dimensions: int | None = None,
        user: str | None = None,
    ) -> EmbeddingResponse:
        """The vectors of texts by an embedding model of a project, its default one unless named."""
        body = body_of(
            {"dimensions": dimensions, "user": user},
            model=model_address(self._project(project), model),
            input=input,
            encoding_format=encoding_format,
        )
        return self._transport.fetch(Call("POST", f"{REST}/embeddings", True, body), EmbeddingResponse)
