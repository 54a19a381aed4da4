"""Models that somebody else computes, behind OpenAI's interface: asked like our own, with the provider's key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from harmonia.config.control import ExternalModels as Settings
from harmonia.errors import (
    DeadlineExceededError,
    HarmoniaError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from harmonia.log import get_logger
from harmonia.protocol.client import Event
from harmonia.protocol.messages import ChatPrompt, Constraint, Delta, Finished, Generate, ToolCall, Usage
from harmonia.protocol.sampling import SamplingParams
from harmonia.server.services.outbound import AddressGuard, ForbiddenAddressError, OutboundError, PinnedTransport
from harmonia.server.services.secrets import Secrets

log = get_logger(__name__)

SETTING = "ADAPTIVE_EXTERNAL_MODELS__ALLOW_PRIVATE"


@dataclass(frozen=True, slots=True)
class Provider:
    """How a provider offers OpenAI's interface."""

    url: str
    """Unless the model has an endpoint of its own."""
    limit: str = "max_completion_tokens"
    """Its name for the longest answer."""
    ignored: frozenset[str] = frozenset()
    """What it takes without effect, and what is refused here instead."""


PROVIDERS = {
    "OPEN_AI": Provider("https://api.openai.com/v1"),
    "LEGACY_OPEN_AI": Provider("https://api.openai.com/v1", limit="max_tokens"),
    "GOOGLE": Provider("https://generativelanguage.googleapis.com/v1beta/openai", limit="max_tokens"),
    "ANTHROPIC": Provider(
        "https://api.anthropic.com/v1",
        ignored=frozenset({"n", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "response_format"}),
    ),
}
_FINISH = {"content_filter": "stop", "function_call": "tool_calls"}
_SAME_NAMES = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
_OURS_ONLY = ("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "logprobs")
_DEFAULTS = SamplingParams()
_MAX_WORDS = 300


class ExternalModels:
    """The connections to providers.

    Endpoints that users chose are reached at public addresses only, and past every proxy, which would look them up
    itself; with `allow_private`, and for the providers' own addresses, the proxies of the environment hold.
    """

    def __init__(self, settings: Settings, secrets: Secrets, timeout_s: float) -> None:
        """timeout_s: longest wait for a connection, and between two parts of an answer."""
        self._allow_private = settings.allow_private
        self._guard = AddressGuard(allow_private=settings.allow_private, setting=SETTING)
        self._secrets = secrets
        self._timeout_s = timeout_s
        self._clients: dict[bool, httpx.AsyncClient] = {}
        """By whether addresses are checked; made when first needed."""

    async def check_endpoint(self, endpoint: str) -> None:
        """InvalidRequestError for an endpoint at an address that may not be reached. Unknown hosts pass."""
        url = httpx.URL(endpoint)
        try:
            await self._guard.resolve(url.host, url.port or 0)
        except ForbiddenAddressError as error:
            raise InvalidRequestError(f"endpoint: {error}", field="endpoint") from error
        except OutboundError as error:
            log.warning("an external model has an endpoint that cannot be found now: %s", error)

    def model(self, key: str, external: Mapping[str, Any], secret: str) -> OpenAIModel:
        """A registered external model, ready to be asked.

        key, external, secret: as the model's row has them.
        """
        is_checked = bool(external.get("endpoint")) and not self._allow_private
        if is_checked not in self._clients:
            transport = PinnedTransport(self._guard) if is_checked else None
            self._clients[is_checked] = httpx.AsyncClient(
                timeout=self._timeout_s, transport=transport, trust_env=not is_checked
            )
        return OpenAIModel(self._clients[is_checked], key, external, self._secrets.open(secret))

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()


class OpenAIModel:
    """A model behind OpenAI's interface."""

    def __init__(self, client: httpx.AsyncClient, name: str, external: Mapping[str, Any], api_key: str) -> None:
        self._client = client
        self._api_key = api_key
        self._external = external
        self._name = name
        self._provider = PROVIDERS[external["provider"]]
        self._url = f"{(external.get('endpoint') or self._provider.url).rstrip('/')}/chat/completions"

    def generate(self, request: Generate) -> ExternalStream:
        """Ask it."""
        return ExternalStream(self._events(request, self._payload(request)))

    def _payload(self, request: Generate) -> dict[str, Any]:
        if not isinstance(request.prompt, ChatPrompt):
            raise InvalidRequestError(
                f"{self._name} is an external model, which answers chats only; use /chat/completions", field="model"
            )
        sampling = request.sampling
        _refuse_ours(sampling)
        given: dict[str, Any] = {
            name: value for name in _SAME_NAMES if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name)
        }
        optional = {
            self._provider.limit: sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "logit_bias": dict(sampling.logit_bias) or None,
            "tools": list(request.prompt.tools) or None,
            "n": request.n if request.n > 1 else None,
            "response_format": _response_format(request.constraint),
        }
        given.update({name: value for name, value in optional.items() if value is not None})
        for name in sorted(self._provider.ignored & given.keys()):
            raise InvalidRequestError(f"{name}: the provider of {self._name} ignores it; leave it out", field=name)
        fixed = {
            "model": self._external["external_model_id"],
            "messages": list(request.prompt.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return {**given, **(self._external.get("extra_params") or {}), **fixed}

    async def _events(self, request: Generate, payload: dict[str, Any]) -> AsyncIterator[Event]:
        reading = _Reading(request.id)
        async for data in self._answers(payload):
            for event in reading.take(self._decoded(data)):
                yield event
        yield reading.finish()

    async def _answers(self, payload: dict[str, Any]) -> AsyncIterator[str]:
        """The data of the provider's server-sent events."""
        headers = {"Authorization": f"Bearer {self._api_key}", "Accept": "text/event-stream"}
        try:
            async with self._client.stream("POST", self._url, json=payload, headers=headers) as response:
                if response.status_code != 200:
                    raise self._refusal(response, await response.aread())
                async for line in response.aiter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        yield data
        except httpx.TimeoutException as error:
            raise DeadlineExceededError(
                f"{self._name}: its provider did not answer in time", limit="ADAPTIVE_HTTP_CLIENT__TIMEOUT_SECS"
            ) from error
        except ForbiddenAddressError as error:
            raise InvalidRequestError(f"{self._name}: its endpoint may not be asked: {error}", field="model") from error
        except (httpx.HTTPError, OutboundError) as error:
            raise UnavailableError(f"{self._name}: its provider cannot be reached: {error}") from error

    def _decoded(self, data: str) -> dict[str, Any]:
        try:
            chunk = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise UnavailableError(f"{self._name}: its provider sent something that is no answer") from error
        if chunk.get("error"):
            raise UnavailableError(f"{self._name}: its provider broke the answer off: {_words(chunk['error'])}")
        return chunk

    def _refusal(self, response: httpx.Response, body: bytes) -> HarmoniaError:
        status = response.status_code
        if status in (401, 403):
            # Providers repeat parts of the key in their words.
            return UnavailableError(f"{self._name}: its provider refuses the registered API key ({status})")
        try:
            words = _words(msgspec.json.decode(body, type=dict[str, Any]).get("error"))
        except msgspec.DecodeError:
            words = body.decode(errors="replace")[:_MAX_WORDS]
        told = f"{self._name}: its provider answers {status}: {words}"
        if status == 429:
            wait = response.headers.get("retry-after", "")
            return OverloadedError(told, retry_after_s=int(wait) if wait.isdigit() else 1)
        return InvalidRequestError(told) if status < 500 else UnavailableError(told)


class ExternalStream:
    """The events of one answer, read ahead in a task of its own."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._queue: asyncio.Queue[Event | HarmoniaError | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._pump(events))

    async def next_events(self) -> list[Event]:
        """What came since the last call, at least one event; empty at the end."""
        items = [await self._queue.get()]
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        events = [item for item in items if isinstance(item, Delta | Finished)]
        last = items[-1]
        if events:
            if not isinstance(last, Delta | Finished):
                self._queue.put_nowait(last)
            return events
        if isinstance(last, HarmoniaError):
            raise last
        return []

    def cancel(self) -> None:
        """Hang up."""
        self._task.cancel()
        self._queue.put_nowait(None)

    async def _pump(self, events: AsyncIterator[Event]) -> None:
        try:
            async for event in events:
                self._queue.put_nowait(event)
        except HarmoniaError as error:
            self._queue.put_nowait(error)
            return
        except Exception:
            log.exception("an external model's answer could not be read")
            self._queue.put_nowait(UnavailableError("the provider's answer could not be read"))
            return
        self._queue.put_nowait(None)


class _Reading:
    """Turns the chunks of an answer into events."""

    def __init__(self, request_id: str) -> None:
        self._id = request_id
        self._started = time.perf_counter()
        self._first: float | None = None
        self._usage = Usage(prompt_tokens=0, completion_tokens=0)
        self._calls: dict[int, dict[int, dict[str, str]]] = {}

    def take(self, chunk: dict[str, Any]) -> list[Delta]:
        """The deltas of a chunk."""
        if self._first is None:
            self._first = time.perf_counter()
        usage = chunk.get("usage")
        if usage:
            details = usage.get("prompt_tokens_details") or {}
            self._usage = Usage(
                prompt_tokens=usage.get("prompt_tokens", 0),
                completion_tokens=usage.get("completion_tokens", 0),
                cached_tokens=details.get("cached_tokens") or 0,
            )
        return [self._delta(choice) for choice in chunk.get("choices") or ()]

    def finish(self) -> Finished:
        """The end, with counts and times."""
        now = time.perf_counter()
        first = self._first or now
        timings = {"ttft": 1000 * (first - self._started), "total": 1000 * (now - self._started)}
        return Finished(id=self._id, usage=self._usage, timings_ms=timings)

    def _delta(self, choice: dict[str, Any]) -> Delta:
        index, delta = choice.get("index", 0), choice.get("delta") or {}
        for part in delta.get("tool_calls") or ():
            self._add_call(index, part)
        reason = choice.get("finish_reason")
        calls = self._calls.pop(index, {}) if reason else {}
        return Delta(
            id=self._id,
            index=index,
            text=delta.get("content") or delta.get("refusal") or "",
            tool_calls=tuple(ToolCall(**calls[position]) for position in sorted(calls)),
            finish_reason=_FINISH.get(reason, reason) if reason else None,
        )

    def _add_call(self, index: int, part: dict[str, Any]) -> None:
        """Calls come in pieces; they are told whole."""
        calls = self._calls.setdefault(index, {})
        call = calls.setdefault(part.get("index", 0), {"id": "", "name": "", "arguments": ""})
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""


def _refuse_ours(sampling: SamplingParams) -> None:
    for name in _OURS_ONLY:
        if getattr(sampling, name) != getattr(_DEFAULTS, name):
            raise InvalidRequestError(f"{name}: external models do not know this setting; leave it out", field=name)


def _response_format(constraint: Constraint | None) -> dict[str, Any] | None:
    if constraint is None:
        return None
    if constraint.kind == "json_object":
        return {"type": "json_object"}
    if constraint.kind == "json_schema":
        schema = msgspec.json.decode(constraint.source)
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    message = f"constrained_decoding: external models know JSON schemas, no {constraint.kind} grammars"
    raise InvalidRequestError(message, field="constrained_decoding")


def _words(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:_MAX_WORDS]
