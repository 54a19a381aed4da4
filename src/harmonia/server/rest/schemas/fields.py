"""What several requests and responses share."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

JsonValue = Any
"""Any JSON; kept as it came."""

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]
Choices = Annotated[int, Meta(ge=1, le=128)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]


class RequestModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request body: a field that is not listed is refused by name."""


class ResponseModel(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A response body: a field at its default is left out."""


class StreamOptions(RequestModel, kw_only=True):
    """How to stream."""

    include_usage: bool | None = None
    """Send a last chunk with the token counts."""
    include_obfuscation: bool | None = None
    """Accepted without effect: this server sends no padding."""


class GenerationRequest(RequestModel, kw_only=True):
    """Fields of chat and text completion requests alike."""

    model: Name
    """Key of a backbone or an adapter; `GET /v1/models` lists them."""
    stream: bool | None = None
    """Answer token by token as server-sent events."""
    stream_options: StreamOptions | None = None
    """How to stream."""
    n: Choices | None = None
    """Number of answers."""
    max_tokens: Count | None = None
    """Longest answer in tokens."""
    min_tokens: Count | None = None
    """No end before this many tokens."""
    stop: str | list[str] | None = None
    """Strings that end the answer and are not part of it."""
    stop_token_ids: list[TokenId] | None = None
    """Tokens that end the answer, beside the model's own."""
    ignore_eos: bool | None = None
    """Go on past the model's own end tokens."""
    seed: Int64 | None = None
    """Same seed, same tokens, in any batch."""
    temperature: float | None = None
    """0 is greedy; 1 by default."""
    top_p: float | None = None
    """Keep the smallest set of tokens whose probability reaches this."""
    top_k: Int64 | None = None
    """Keep the k most likely tokens; 0 and -1 keep all."""
    min_p: float | None = None
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of tokens seen in prompt or answer."""
    presence_penalty: float | None = None
    """Subtracted from logits of tokens that the answer already holds."""
    frequency_penalty: float | None = None
    """Subtracted once per occurrence in the answer."""
    logit_bias: dict[str, float] | None = None
    """Added to the logits of single tokens; keys are token ids."""
    return_token_ids: bool | None = None
    """Report the ids of prompt and answer tokens."""
    session_id: Name | None = None
    """Conversation whose cache to keep; a new one is named in the response when absent."""
    max_ttft_ms: Milliseconds | None = None
    """Bound on the time to the first token, queue included."""
    labels: dict[str, str] | None = None
    """Recorded with the interaction."""
    metadata: dict[str, str] | None = None
    """OpenAI's name for `labels`."""
    tags: list[str] | None = None
    """Recorded with the interaction."""
    store: bool | None = None
    """Whether to record the interaction."""
    user: str | None = None
    """Who asks."""
    ab_campaign: str | None = None
    """A/B test to take part in, by id or key, whatever its share of the traffic."""
    service_tier: str | None = None
    """Accepted without effect."""
    safety_identifier: str | None = None
    """Accepted without effect."""
    prompt_cache_key: str | None = None
    """Accepted without effect: equal prefixes are found without a hint."""
    prompt_cache_retention: str | None = None
    """Accepted without effect."""


class PromptTokensDetails(ResponseModel, kw_only=True, omit_defaults=False):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0
    """Prompt tokens taken from the cache instead of being computed."""


class CompletionTokensDetails(ResponseModel, kw_only=True, omit_defaults=False):
    """Tokens that a draft proposed."""

    accepted_prediction_tokens: int = 0
    """Those that were right, and so are part of the answer."""
    rejected_prediction_tokens: int = 0


class UsageReport(ResponseModel, kw_only=True):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    """Where the model has a draft."""


class ErrorBody(ResponseModel, kw_only=True, omit_defaults=False):
    """What went wrong."""

    message: str
    """For people: the value and the remedy."""
    type: str
    """OpenAI's class of the error."""
    param: str | None = None
    """The field at fault."""
    code: str | None = None
    """Stable name of the error."""


class ErrorResponse(ResponseModel, kw_only=True):
    """Body of every response that is not a success."""

    error: ErrorBody
