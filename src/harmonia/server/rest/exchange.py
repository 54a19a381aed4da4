"""One generation request from its arrival to its answer, whichever endpoint it came to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.protocol.client import Event
from harmonia.protocol.messages import Generate
from harmonia.router import ELSEWHERE, Attempts, Replica
from harmonia.server.rest.answers import DeltaMap, Gathered, Head, Source, collect, head_of
from harmonia.server.rest.caller import Caller
from harmonia.server.rest.context import Context, json_response
from harmonia.server.rest.prompts import check_tokens
from harmonia.server.rest.schemas.fields import GenerationRequest, ResponseModel
from harmonia.server.rest.sse import ChunkEncoder, EventStream, Telling
from harmonia.server.rest.target import Target

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Form:
    """How an endpoint writes its answers."""

    kind: str
    """How their ids begin."""
    whole: Callable[[Gathered], ResponseModel]
    chunks: Callable[[Head], ChunkEncoder]
    change: DeltaMap | None = None
    """Applied to every delta first."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was read, and the model that is to answer it."""

    request: Request
    api: Context
    body: GenerationRequest
    target: Target
    asked: tuple[Generate, ...]
    """One for each prompt."""

    async def answer(self, form: Form) -> Response:
        """Ask, and answer whole or as a stream, as the body wants it."""
        self.request.state.model = self.target.shown
        head = head_of(form.kind, self.asked, self.target.shown, bool(self.body.return_token_ids))
        caller = Caller(self.request, self.api.config.server.timeout_seconds)
        try:
            if not self.body.stream:
                gathered = await caller.wait_for(self._ask(partial(collect, head=head, change=form.change)))
                if self.target.observe is not None:
                    await self.target.observe(gathered)
                caller.close()
                return json_response(form.whole(gathered))
            source, first = await caller.wait_for(self._ask(_begin))
        except BaseException:
            caller.close()
            raise
        options = self.body.stream_options
        include_usage = options is not None and bool(options.include_usage)
        telling = Telling(head, form.chunks(head), form.change, include_usage, self.target.observe)
        return EventStream(caller, source, first, telling)

    async def _ask(self, take: Callable[[Source], Awaitable[T]]) -> T:
        """What `take` makes of the answer. Its caller has seen nothing yet, so another worker may be asked."""
        external = self.target.external
        if external is not None:
            if len(self.asked) > 1:
                raise InvalidRequestError("prompt: an external model takes one prompt at a time", field="prompt")
            return await _taken(take, external.generate(self.asked[0]))
        attempts = Attempts(self.api.router, self.target.key, self.asked[0].session_id)
        while True:
            replica = attempts.next()
            self.request.state.pool = self.api.pool_of(replica.replica)
            self._check(replica)
            try:
                return await _taken(take, self.api.router.generate(replica, *self.asked))
            except ELSEWHERE as error:
                attempts.failed(replica, error)

    def _check(self, replica: Replica) -> None:
        """What only the vocabulary can say about the request."""
        vocab_size = replica.description.vocab_size
        self.asked[0].sampling.validate(vocab_size)
        check_tokens([request.prompt for request in self.asked], vocab_size, "prompt")


async def _taken(take: Callable[[Source], Awaitable[T]], source: Source) -> T:
    try:
        return await take(source)
    except BaseException:
        source.cancel()
        raise


async def _begin(source: Source) -> tuple[Source, list[Event]]:
    return source, await source.next_events()
