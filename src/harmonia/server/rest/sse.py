"""Server-sent events, written without a task or a model per token."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from harmonia.errors import HarmoniaError
from harmonia.log import get_logger
from harmonia.protocol.client import Event
from harmonia.protocol.messages import Delta, Finished
from harmonia.server.rest.answers import DeltaMap, Gathered, Head, Source
from harmonia.server.rest.caller import Caller
from harmonia.server.rest.errors import body_of
from harmonia.server.rest.schemas.fields import UsageReport

log = get_logger(__name__)

Observer = Callable[[Gathered], Awaitable[None]]

to_json = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ChunkEncoder(ABC):
    """Writes the chunks of one kind of request."""

    @abstractmethod
    def chunk(self, delta: Delta) -> bytes:
        """The event for a delta; empty when there is nothing to tell."""

    @abstractmethod
    def usage_chunk(self, usage: UsageReport) -> bytes:
        """The event that reports the token counts."""


@dataclass(frozen=True, slots=True)
class Telling:
    """How the events of a request become a response. observe: gets the answers when all of them are complete."""

    head: Head
    encoder: ChunkEncoder
    change: DeltaMap | None
    include_usage: bool
    observe: Observer | None


class EventStream(Response):
    """A response that forwards a `Source` as it comes. Its first events are at hand, so an early error has a status."""

    media_type = "text/event-stream"

    def __init__(self, caller: Caller, source: Source, first: list[Event], telling: Telling) -> None:
        self.status_code = 200
        self.background = None
        self._caller, self._source, self._first, self._telling = caller, source, first, telling
        self._gathered = Gathered(telling.head)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, then the end marker or the error that cut it short."""
        self._caller.when_gone(self._source.cancel)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            # In a task of its own, an event does not resume the twenty coroutines of middleware around it.
            last = await asyncio.create_task(self._forward(send))
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._source.cancel()
            self._caller.close()

    async def _forward(self, send: Send) -> bytes:
        """Send chunks until the stream ends; the bytes that close the response."""
        try:
            events = self._first
            while events:
                body = b"".join([self._event(event) for event in events])
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                events = await self._source.next_events()
        except HarmoniaError as error:
            log.warning("a stream ended early: %s", error)
            return b"data: " + body_of(error) + b"\n\n"
        telling = self._telling
        if telling.observe is not None:
            await telling.observe(self._gathered)
        usage = telling.encoder.usage_chunk(self._gathered.usage) if telling.include_usage else b""
        return usage + DONE

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Finished):
            self._gathered.finish(event)
            return b""
        telling = self._telling
        delta = event if telling.change is None else telling.change(event)
        if telling.observe is not None:
            self._gathered.add(delta)
        return telling.encoder.chunk(delta)
