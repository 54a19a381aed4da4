"""`POST /chat/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from harmonia.server.rest.schemas.fields import (
    GenerationRequest,
    JsonValue,
    Name,
    RequestModel,
    ResponseModel,
    TopLogprobs,
    UsageReport,
)

JsonSchema = dict[str, JsonValue]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class ContentPart(RequestModel, kw_only=True):
    """A piece of a message."""

    type: str
    """`text` or `refusal`; other kinds are refused by name."""
    text: str | None = None
    refusal: str | None = None
    image_url: JsonValue = None
    input_audio: JsonValue = None
    file: JsonValue = None


class CalledFunction(RequestModel, kw_only=True):
    """The function and arguments of a call in the history."""

    name: str
    arguments: str | JsonSchema
    """JSON text."""


class PastToolCall(RequestModel, kw_only=True):
    """A tool call of an earlier assistant turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(RequestModel, kw_only=True):
    """One turn of the conversation, as OpenAI's clients send it and as this server answers it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    id: str | None = None
    """Accepted without effect, as are the following: parts of an answer that is sent back."""
    completion_id: str | None = None
    metadata: JsonValue = None
    annotations: JsonValue = None
    audio: JsonValue = None
    function_call: JsonValue = None


class JsonSchemaFormat(RequestModel, kw_only=True):
    """A named JSON schema."""

    name: str
    schema: JsonSchema | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(RequestModel, kw_only=True):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ConstrainedDecoding(RequestModel, kw_only=True):
    """A grammar that the answer must follow."""

    schema: str
    """The grammar's source."""
    format: Literal["json", "json_schema", "regex", "lark"]


class FunctionDefinition(RequestModel, kw_only=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(RequestModel, kw_only=True):
    """An OpenAI function (`type`, `function`) or a switch for a registered tool (`id`, `enabled`)."""

    type: Literal["function"] | None = None
    function: FunctionDefinition | None = None
    id: str | None = None
    enabled: bool | None = None


class NamedFunction(RequestModel, kw_only=True):
    """The function that must be called."""

    name: str


class NamedToolChoice(RequestModel, kw_only=True):
    """Call exactly this function."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationRequest, kw_only=True):
    """A conversation to continue."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    """The conversation so far."""
    max_completion_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """OpenAI's newer name for `max_tokens`; wins over it."""
    logprobs: bool | None = None
    """Report the log-probability of every token."""
    top_logprobs: TopLogprobs | None = None
    """And of this many most likely ones; needs `logprobs`."""
    response_format: ResponseFormat | None = None
    """The form that the answer must have."""
    constrained_decoding: ConstrainedDecoding | None = None
    """A grammar that the answer must follow."""
    tools: list[Tool] | None = None
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    """Whether it may, must, or must not call one."""
    parallel_tool_calls: bool | None = None
    """Accepted; a forced choice always makes one call."""
    chat_template_kwargs: dict[str, JsonValue] | None = None
    """Further variables of the model's chat template."""
    system_prompt_args: dict[str, JsonValue] | None = None
    """Fills the system prompt that a project keeps for its model; refused where there is none."""
    use_tools: bool | None = None
    """Accepted without effect: no tools are registered on this server."""
    reasoning_effort: str | None = None
    """Accepted without effect."""
    verbosity: str | None = None
    """Accepted without effect."""
    prediction: JsonValue = None
    """Accepted without effect."""
    modalities: list[Literal["text"]] | None = None
    """Text only."""


class FunctionCall(ResponseModel, kw_only=True):
    """Name and arguments of a call."""

    name: str
    arguments: str


class ToolCallReport(ResponseModel, kw_only=True, omit_defaults=False):
    """A call that the model wants made."""

    id: str
    function: FunctionCall
    type: str = "function"


class ChatAnswer(ResponseModel, kw_only=True):
    """The assistant's turn."""

    id: str
    role: str
    content: str
    tool_calls: list[ToolCallReport] | None = None


class TopLogprob(ResponseModel, kw_only=True):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(ResponseModel, kw_only=True):
    """A token of the answer with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel, kw_only=True):
    """Log-probabilities of an answer."""

    content: list[ChatLogprob]


class ChatChoice(ResponseModel, kw_only=True, omit_defaults=False):
    """One answer."""

    index: int
    completion_id: str
    model: str
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | None = None


class ChatResponse(ResponseModel, kw_only=True):
    """All answers."""

    id: str
    object: str
    created: int
    model: str
    session_id: Name
    choices: list[ChatChoice]
    usage: UsageReport
    prompt_token_ids: list[int] | None = None
