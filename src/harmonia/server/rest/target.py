"""Which model answers a request, under which name, and who wants to know what it answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import Generate
from harmonia.server.rest.answers import Source
from harmonia.server.rest.schemas import ChatRequest, EmbeddingRequest
from harmonia.server.rest.schemas.fields import GenerationRequest
from harmonia.server.rest.sse import Observer

ModelRequest = GenerationRequest | EmbeddingRequest


class ExternalModel(Protocol):
    """A model that somebody else computes."""

    def generate(self, request: Generate) -> Source:
        """Ask it. Raises `InvalidRequestError` for what it cannot do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The model that answers."""

    key: str
    """For the router."""
    shown: str
    """For the caller."""
    max_ttft_ms: int | None = None
    """For requests that set no bound of their own; None: the worker's."""
    max_tokens: int | None = None
    """Longest answer to requests that do not say; None: what the endpoint's own rule gives."""
    system_prompt: str | None = None
    """With what chats begin."""
    num_draft_steps: int | None = None
    """Tokens to propose at a time; None: as many as the worker was started for."""
    external: ExternalModel | None = None
    """Instead of the router's."""
    observe: Observer | None = None
    """Gets the answers."""


FindTarget = Callable[[Request, ModelRequest], Awaitable[Target]]


async def named_target(_: Request, body: ModelRequest) -> Target:
    """The model of the name that the request gives, for a server without projects."""
    if isinstance(body, GenerationRequest) and body.ab_campaign is not None:
        raise InvalidRequestError("ab_campaign: this server has no A/B tests; leave it out", field="ab_campaign")
    if isinstance(body, ChatRequest) and body.system_prompt_args:
        message = "system_prompt_args: this server keeps no system prompts; write the text into the message"
        raise InvalidRequestError(message, field="system_prompt_args")
    return Target(key=body.model, shown=body.model)
