"""`POST /completions`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from harmonia.server.rest.schemas.fields import (
    GenerationRequest,
    Name,
    ResponseModel,
    TokenId,
    TopLogprobs,
    UsageReport,
)

PromptInput = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


class CompletionRequest(GenerationRequest, kw_only=True):
    """Text or tokens to continue."""

    prompt: PromptInput
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    echo: bool | None = None
    """Answer with the prompt in front."""
    logprobs: TopLogprobs | None = None
    """Report log-probabilities of every token and of this many most likely ones."""
    best_of: int | None = None
    """Accepted when it equals `n`: this server returns every answer that it generates."""
    suffix: str | None = None
    """Refused unless empty: filling in the middle is not supported."""


class CompletionLogprobs(ResponseModel, kw_only=True):
    """Log-probabilities of an answer, token by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(ResponseModel, kw_only=True, omit_defaults=False):
    """One answer."""

    index: int
    completion_id: str
    model: str
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionResponse(ResponseModel, kw_only=True):
    """All answers to all prompts, prompt by prompt."""

    id: str
    object: str
    created: int
    model: str
    session_id: Name
    choices: list[CompletionChoice]
    usage: UsageReport
