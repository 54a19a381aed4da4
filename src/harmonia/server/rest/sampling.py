"""From request fields to the engine's `SamplingParams`."""

from __future__ import annotations

from typing import TypeVar

from harmonia.errors import InvalidRequestError
from harmonia.protocol.sampling import SamplingParams
from harmonia.server.rest.schemas.fields import GenerationRequest

MAX_STOPS = 64

N = TypeVar("N", int, float)


def sampling_params(
    request: GenerationRequest, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """The sampling settings that a request asks for; fields that it leaves out take the defaults."""
    return SamplingParams(
        temperature=_or(request.temperature, 1.0),
        top_k=0 if request.top_k in (None, -1) else request.top_k,
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        logit_bias=_logit_bias(request.logit_bias or {}),
        seed=request.seed,
        max_tokens=max_tokens,
        min_tokens=_or(request.min_tokens, 0),
        stop=_stop(request.stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _or(value: N | None, default: N) -> N:
    return default if value is None else value


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise InvalidRequestError("stop: an empty string would end every answer at once", field="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidRequestError(f"stop: at most {MAX_STOPS} strings, got {len(stops)}", field="stop")
    return stops


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    wrong = next((key for key in bias if not (key.isascii() and key.isdigit() and len(key) < 11)), None)
    if wrong is not None:
        raise InvalidRequestError(f"logit_bias: keys are token ids, got {wrong!r}", field="logit_bias")
    return {int(key): value for key, value in bias.items()}
