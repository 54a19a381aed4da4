"""Messages of the worker protocol: typed msgspec structs, msgpack on a WebSocket, many requests multiplexed by id.

A client sends `ClientMessage`s and receives `WorkerMessage`s. Every request has an id of the client's choice, unique on
its connection; sending the same id again is answered once. One engine step yields one `Step` message with the deltas of
all streams of the connection.
"""

# msgspec gives every struct its own copy of a default.
# ruff: noqa: RUF012

from __future__ import annotations

import msgspec

from harmonia.protocol.base import JsonObject as JsonObject  # noqa: PLC0414 - for those who import it from here
from harmonia.protocol.base import Message as _Message
from harmonia.protocol.instances import InstanceAnswer, InstanceCommand
from harmonia.protocol.sampling import SamplingParams
from harmonia.protocol.threads import ThreadData, TokenThreadData

PROTOCOL_VERSION = 2


# ---------------------------------------------------------------------------------------------- what to answer


class TextPrompt(_Message, frozen=True, kw_only=True):
    """Plain text, tokenized by the worker."""

    text: str


class TokenPrompt(_Message, frozen=True, kw_only=True):
    """Token ids as they are."""

    token_ids: tuple[int, ...]


class ChatPrompt(_Message, frozen=True, kw_only=True):
    """A conversation, rendered with the model's chat template."""

    messages: tuple[JsonObject, ...]
    """OpenAI's shape; text parts are joined."""
    tools: tuple[JsonObject, ...] = ()
    """OpenAI's function tools, rendered through the template."""
    add_generation_prompt: bool = True
    """Open an assistant turn at the end."""
    template_args: JsonObject = {}
    """Further variables of the template."""


class ThreadPrompt(_Message, frozen=True, kw_only=True):
    """A conversation of the recipe API; `Finished.threads` then holds it with each answer."""

    thread: ThreadData | TokenThreadData
    tools: tuple[JsonObject, ...] = ()
    """OpenAI's function tools, rendered through the template."""


Prompt = TextPrompt | TokenPrompt | ChatPrompt | ThreadPrompt


class Constraint(_Message, frozen=True, kw_only=True):
    """A grammar that the answer must follow."""

    kind: str
    """`json_object`, `json_schema`, `regex` or `lark`."""
    source: str = ""
    """The schema as JSON text, the expression, or the grammar."""


# ---------------------------------------------------------------------------------------------- client to worker


class Generate(_Message, frozen=True, kw_only=True):
    """Generate `n` answers to one prompt."""

    id: str
    model: str
    """Key of the backbone or of an adapter."""
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    constraint: Constraint | None = None
    session_id: str | None = None
    """Conversation whose cache blocks to prefer when memory is short."""
    max_ttft_ms: int | None = None
    """Bound on the time to the first token, queue included; None takes the worker's default."""
    parse_tools: bool = False
    """Recognise tool calls in the answer."""
    stream: bool = True
    """False: deltas come only when the answer is complete."""
    num_draft_steps: int | None = None
    """Tokens to propose at a time, at most, 0 for none; None: as many as the model was spawned for, which is the most
    in any case. Answers do not depend on it."""
    always_draft: bool = False
    """Propose in every step, whether that pays or not: to measure a draft."""
    trace: str = ""
    """What asks, as W3C's `traceparent`; empty: not traced."""


class Embed(_Message, frozen=True, kw_only=True):
    """Normalised final hidden states of the last token of each prompt."""

    id: str
    model: str
    prompts: tuple[TextPrompt | TokenPrompt, ...]
    max_ttft_ms: int | None = None
    trace: str = ""
    """As of `Generate`."""


class Cancel(_Message, frozen=True, kw_only=True):
    """Stop a request and free its blocks; unknown ids are ignored.

    What a `Spawn` or `Clone` makes is freed again; other changes of instances take effect nevertheless.
    """

    id: str


class Pause(_Message, frozen=True, kw_only=True):
    """Stop scheduling a request until `Resume`: its consumer is slow."""

    id: str


class Resume(_Message, frozen=True, kw_only=True):
    """Go on with a paused request."""

    id: str


class CloseSession(_Message, frozen=True, kw_only=True):
    """Forget a session's preference for its cache blocks."""

    id: str
    session_id: str


class LoadAdapter(_Message, frozen=True, kw_only=True):
    """Load a PEFT folder under a key."""

    id: str
    key: str
    path: str


class UnloadAdapter(_Message, frozen=True, kw_only=True):
    """Free an adapter's slot; its running requests end first with an error."""

    id: str
    key: str


class Describe(_Message, frozen=True, kw_only=True):
    """Ask for a `Description`."""

    id: str
    unlike: int | None = None
    """Answer only when `Description.revision` is another than this; None: at once."""


class GetStats(_Message, frozen=True, kw_only=True):
    """Ask for `Stats`."""

    id: str


ClientMessage = (
    Generate
    | Embed
    | Cancel
    | Pause
    | Resume
    | CloseSession
    | LoadAdapter
    | UnloadAdapter
    | Describe
    | GetStats
    | InstanceCommand
)


# ---------------------------------------------------------------------------------------------- worker to client


class TokenLogprob(_Message, frozen=True, kw_only=True):
    """A token with its natural, untempered log-probability over the full vocabulary."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float | None
    """None for the first token of a prompt."""
    top: tuple[tuple[int, str, bytes, float], ...] = ()
    """(id, text, bytes, log-probability) of the most likely tokens, best first."""


class ToolCall(_Message, frozen=True, kw_only=True):
    """A function call that the model made."""

    id: str
    name: str
    arguments: str
    """JSON text."""


class Usage(_Message, frozen=True, kw_only=True):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens taken from the cache."""
    drafted_tokens: int = 0
    """Tokens that a draft proposed."""
    accepted_tokens: int = 0
    """Of these, the ones that were right."""


class Delta(_Message, frozen=True, kw_only=True):
    """What one answer gained since the last message."""

    id: str
    index: int = 0
    """Which of the n answers."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    """`stop`, `length` or `tool_calls`, on the last delta of an answer."""
    version: int = 0
    """Version of the weights that made these tokens."""
    prompt_token_ids: tuple[int, ...] = ()
    """On the first delta of answer 0."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """On the first delta of answer 0, when asked for."""
    drafted_tokens: int = 0
    """Tokens that a draft proposed to this answer, on its last delta."""
    accepted_tokens: int = 0
    """Of these, the ones that were right."""


class Step(_Message, frozen=True, kw_only=True):
    """Everything that one engine step brought for this connection."""

    deltas: tuple[Delta, ...]


class Finished(_Message, frozen=True, kw_only=True):
    """All answers of a request are complete."""

    id: str
    usage: Usage
    timings_ms: dict[str, float] = {}
    """`queue`, `ttft` and `total`."""
    threads: tuple[TokenThreadData, ...] = ()
    """For a `ThreadPrompt`: prompt and answer as the model saw and sampled them, one per answer; only the new turn is
    weighted."""


class Failed(_Message, frozen=True, kw_only=True):
    """The request ended with an error, rebuilt by `errors.from_code`."""

    id: str
    code: str
    message: str
    details: JsonObject = {}


class Embedded(_Message, frozen=True, kw_only=True):
    """Answer to `Embed`."""

    id: str
    vectors: tuple[bytes, ...]
    """Little-endian float32."""
    usage: Usage


class Done(_Message, frozen=True, kw_only=True):
    """A command without a value succeeded."""

    id: str


class ModelInfo(_Message, frozen=True, kw_only=True):
    """A model that this worker serves."""

    key: str
    parent: str | None = None
    """Key of the backbone, for an adapter."""
    version: int = 0
    created: int = 0
    """Unix seconds at which it was loaded."""


class Description(_Message, frozen=True, kw_only=True):
    """What this worker is and what it can take."""

    id: str
    protocol_version: int
    models: tuple[ModelInfo, ...]
    family: str
    vocab_size: int
    max_seq_len: int
    kv_cache_len: int
    precision: str
    invariant: bool = False
    """Results do not depend on what else is in a batch."""
    device: str
    has_chat_template: bool
    revision: int = 0
    """Grows when a model appears, goes, or gets new weights; 0 where nobody counts."""
    plan: JsonObject = {}
    """The memory plan, as `MemoryPlan.to_dict()` gives it."""


class Histogram(_Message, frozen=True, kw_only=True):
    """Cumulative counts per upper bound, Prometheus' way; the last bound is infinity."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Stats(_Message, frozen=True, kw_only=True):
    """Counters since the start, gauges of this moment, and histograms; names without unit prefix."""

    id: str
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    by_model: dict[str, dict[str, float]] = {}
    """Counters per model key."""
    histograms: dict[str, dict[str, Histogram]] = {}
    """Per model key: `ttft_seconds`, `inter_token_seconds`, `queue_seconds`; under `*`: `batch_size`."""


WorkerMessage = Step | Finished | Failed | Embedded | Done | Description | Stats | InstanceAnswer

encode = msgspec.msgpack.Encoder().encode
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_worker_decoder: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)
decode_client_message = _client_decoder.decode
decode_worker_message = _worker_decoder.decode
