"""Every exception that Harmonia raises on purpose.

HarmoniaError
├── InvalidRequestError        the caller can mend it; the message names the value and the remedy
│   ├── SequenceTooLongError     a prompt or sample exceeds what the model or the plan allows
│   ├── UnknownModelError        no model, adapter or session of that name
│   ├── EntityNotFoundError      nothing of that kind and name that the caller may see
│   ├── UnsupportedModelError    files of a model that this engine cannot read
│   ├── TokenizerMismatchError   two models that must share a tokenizer do not
│   └── AdapterLimitError        no room for one more adapter
├── InsufficientMemoryError    carries the table of bytes and the levers that would make it fit
├── AuthenticationError        no or wrong key
├── PermissionDeniedError      a valid key that may not do this
├── DeadlineExceededError      names the limit that fired and how to raise it
├── OverloadedError            carries the seconds after which a retry makes sense
├── UnavailableError           not ready yet, or shutting down
└── WorkerLostError            the process that held the request is gone; it may be retried elsewhere

Errors cross process borders as `(code, message, details)` and become the same class on the other side.
"""

from __future__ import annotations

from typing import ClassVar


class HarmoniaError(Exception):
    """Base of all errors; `code` is its stable name on the wire, `details` plain data about it."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequestError(HarmoniaError):
    """A request that the caller can mend. `field` in the details names the offending parameter."""

    code = "invalid_request"


class SequenceTooLongError(InvalidRequestError):
    """A prompt or sample is longer than the model or the memory plan allows."""

    code = "sequence_too_long"


class UnknownModelError(InvalidRequestError):
    """No model, adapter or deployment has that name."""

    code = "unknown_model"


class EntityNotFoundError(InvalidRequestError):
    """Nothing of that kind and name exists, or the caller may not know of it."""

    code = "entity_not_found"


class UnsupportedModelError(InvalidRequestError):
    """The files of a model are of a kind or in a state that cannot be read."""

    code = "unsupported_model"


class TokenizerMismatchError(InvalidRequestError):
    """Two models that must share a tokenizer do not."""

    code = "tokenizer_mismatch"


class AdapterLimitError(InvalidRequestError):
    """The backbone has no room for one more adapter."""

    code = "adapter_limit"


class InsufficientMemoryError(HarmoniaError):
    """What was asked for does not fit; `table` and `levers` in the details say why and what would help."""

    code = "insufficient_memory"


class AuthenticationError(HarmoniaError):
    """The request carries no key, or one that nobody issued."""

    code = "authentication"


class PermissionDeniedError(HarmoniaError):
    """The caller is known and may not do this."""

    code = "permission_denied"


class DeadlineExceededError(HarmoniaError):
    """A time limit fired; `limit` in the details names it."""

    code = "deadline_exceeded"


class OverloadedError(HarmoniaError):
    """The queue is full; `retry_after_s` in the details says when to come back."""

    code = "overloaded"


class UnavailableError(HarmoniaError):
    """The model is still loading, or the server is shutting down."""

    code = "unavailable"


class WorkerLostError(HarmoniaError):
    """The worker that held the request died or closed its connection."""

    code = "worker_lost"


def _tree(cls: type[HarmoniaError]) -> list[type[HarmoniaError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


_BY_CODE = {cls.code: cls for cls in _tree(HarmoniaError)}


def from_code(code: str, message: str, details: dict[str, object] | None = None) -> HarmoniaError:
    """Rebuild the exception that `(code, message, details)` describes; unknown codes become `HarmoniaError`."""
    error = _BY_CODE.get(code, HarmoniaError)(message)
    error.details = dict(details or {})
    return error
