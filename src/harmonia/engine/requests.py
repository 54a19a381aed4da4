"""What goes into the engine and what comes out of it: plain data, fit for msgpack.

Token ids travel as little-endian int32 bytes, so that a long prompt costs one copy.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec
import numpy as np

from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.protocol.base import JsonObject
from harmonia.protocol.losses import Loss
from harmonia.protocol.messages import ModelInfo
from harmonia.protocol.sampling import SamplingParams

log = get_logger(__name__)

FinishReason = Literal["stop", "length"]


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Values to read from the hidden states of a prompt."""

    rows: bytes
    """int32, ascending: after which tokens to read."""
    targets: bytes = b""
    """int32: the token whose log-probability each row gives; empty reads the scalar head."""

    @property
    def first_row(self) -> int:
        """The first row that is read."""
        return int(unpack_ids(self.rows)[0])


class SequenceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to generate, or one prompt to embed."""

    seq_id: int
    """Unique among the sequences alive in the engine."""
    model: str
    """Key of the backbone or of a loaded adapter."""
    token_ids: bytes
    """The prompt, int32."""
    sampling: SamplingParams = SamplingParams()
    session_id: str | None = None
    arrival_s: float = 0.0
    """`time.monotonic()` when the worker took the request in."""
    ttft_deadline_s: float | None = None
    """`time.monotonic()` by which the first token must be there."""
    max_ttft_ms: int | None = None
    """The limit behind that deadline, for its error."""
    constrained: bool = False
    """Every token needs a mask first: see `Engine.provide_mask`."""
    embed: bool = False
    """Return the prompt's embedding instead of generating."""
    score: ScoreRequest | None = None
    """Read values along the prompt instead of generating."""
    num_draft_steps: int | None = None
    """Tokens to propose at a time, at most, 0 for none; None: as many as the model was made for."""
    always_draft: bool = False
    """Propose in every step, whether that pays or not."""

    @property
    def generates(self) -> bool:
        """Tokens are sampled, not only read."""
        return not self.embed and self.score is None


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probability of one candidate."""

    token_id: int
    logprob: float


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of a token and of the best candidates at its place, untempered, full vocabulary."""

    logprob: float | None
    """None for the first token of a prompt."""
    top: tuple[TopLogprob, ...] = ()


class SequenceError(msgspec.Struct, frozen=True):
    """An error in the form that crosses processes."""

    code: str
    message: str
    details: dict[str, object] = {}

    @staticmethod
    def of(error: HarmoniaError) -> SequenceError:
        """The wire form of an exception."""
        return SequenceError(error.code, error.message, error.details)


class SequenceOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one sequence gained in one step."""

    seq_id: int
    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    """One per token when log-probabilities were asked for."""
    finish_reason: FinishReason | None = None
    error: SequenceError | None = None
    """Set when the sequence ended with an error; nothing follows."""
    version: int = 0
    """Version of the weights that made these tokens."""
    cached_tokens: int = 0
    """Prompt tokens taken from the cache; on the first output."""
    queue_s: float = 0.0
    """Seconds before the sequence first ran; on the first output."""
    prompt_scores: tuple[TokenScore, ...] = ()
    """On the first output, when asked for."""
    num_drafted: int = 0
    """Tokens that were proposed in this step."""
    num_accepted: int = 0
    """Of these, the ones that were right."""
    num_wanted: int = 0
    """Proposals that are wanted with the next masks; only under a grammar."""
    embedding: bytes = b""
    """float32, for `embed` requests."""
    values: bytes | None = None
    """float32, for `score` requests."""


class SampleArrays(msgspec.Struct, frozen=True, kw_only=True):
    """One sample to train on: tokens with either a weight each or a target each."""

    token_ids: bytes
    """int32."""
    weights: bytes = b""
    """float32."""
    targets: bytes = b""
    """int32; only with the loss `Tangents`."""


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Add the gradient of one sample, or of one pair."""

    instance: str
    sides: tuple[SampleArrays, ...]
    loss: Loss


class OptimStepRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Move the weights by the mean gradient of the training calls before it; see the protocol's `OptimStep`."""

    instance: str
    lr: float
    wd: float = 0.0
    max_grad_norm: float = 1.0
    skip_nan_gradients: bool = False


class SaveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Write an instance into a folder, whole or not at all."""

    instance: str
    folder: str
    inference_only: bool = True
    merged: bool = False
    """Write an adapter and what it changes as one whole model."""
    info: JsonObject = {}


class Answer(Protocol):
    """Whoever waits for a command that goes on after it was given. One of the two is called, once."""

    def done(self, value: JsonObject) -> None:
        """It succeeded."""
        ...

    def failed(self, error: HarmoniaError) -> None:
        """It did not, and changed nothing."""
        ...


class EngineDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is and what it can take, in the terms of the protocol's `Description`."""

    models: tuple[ModelInfo, ...]
    family: str
    vocab_size: int
    max_seq_len: int
    kv_cache_len: int
    precision: str
    invariant: bool = False
    """Results do not depend on what else is in a batch."""
    device: str
    plan: dict[str, object]
    """The memory plan, as `MemoryPlan.to_dict()` gives it."""


def refusal(request: SequenceRequest, error: HarmoniaError) -> SequenceOutput:
    """The end of a sequence that never began."""
    return SequenceOutput(seq_id=request.seq_id, error=SequenceError.of(error))


def as_harmonia_error(error: Exception) -> HarmoniaError:
    """What a client is told of any exception; ours are logged with their place in the code."""
    if isinstance(error, HarmoniaError):
        return error
    log.error("command failed", exc_info=error)
    return InvalidRequestError(f"{type(error).__name__}: {error}")


def pack_ids(ids: np.ndarray | list[int] | tuple[int, ...]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    return np.asarray(ids, dtype="<i4").tobytes()


def unpack_ids(data: bytes) -> np.ndarray:
    """The reverse of `pack_ids`, read-only."""
    return np.frombuffer(data, dtype="<i4")
