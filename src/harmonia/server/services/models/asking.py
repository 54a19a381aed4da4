"""Asking a model of the registry a question of the server's own, such as what it thinks of an answer."""

from __future__ import annotations

import asyncio
import uuid
from typing import Protocol

from harmonia.errors import DeadlineExceededError, UnavailableError
from harmonia.protocol.client import Event
from harmonia.protocol.messages import ChatPrompt, Constraint, Delta, Generate
from harmonia.protocol.sampling import SamplingParams
from harmonia.router import ELSEWHERE, Attempts, Router
from harmonia.server.db.models import Model
from harmonia.server.services.models.external import PROVIDERS, ExternalModels
from harmonia.server.services.models.models import EXTERNAL, num_proposals
from harmonia.threads import StringThread

_AT_ONCE = 16
"""Questions that wait for answers at the same time; serving goes on beside them."""


class _Source(Protocol):
    async def next_events(self) -> list[Event]: ...

    def cancel(self) -> None: ...


class Asking:
    """Asks models that are deployed, and external ones."""

    def __init__(self, router: Router, external: ExternalModels, timeout_s: float) -> None:
        """timeout_s: longest wait for one answer."""
        self._router = router
        self._external = external
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, model: Model, thread: StringThread, max_tokens: int, schema: str | None = None) -> str:
        """What the model says next, greedily. schema: JSON schema that the answer follows, where the model can be held
        to one. UnavailableError if it is not deployed, DeadlineExceededError if it takes too long.
        """
        if model.kind != EXTERNAL and not self._router.serves(model.key):
            raise UnavailableError(f"model {model.key!r} is not online; deploy it in a project", retry_after_s=60)
        messages = tuple({"role": turn.role, "content": turn.content} for turn in thread.get_turns())
        is_held = schema is not None and not _ignores_schemas(model)
        request = Generate(
            id=uuid.uuid4().hex,
            model=model.key,
            prompt=ChatPrompt(messages=messages),
            sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens),
            constraint=Constraint(kind="json_schema", source=schema or "") if is_held else None,
            stream=False,
            num_draft_steps=num_proposals(model.kind, model.num_draft_steps, None),
        )
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._ask(model, request)
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"model {model.key!r} did not answer within {self._timeout_s:g} s",
                    limit="ADAPTIVE_SERVER__TIMEOUT_SECONDS",
                ) from error

    async def _ask(self, model: Model, request: Generate) -> str:
        """Where a worker does not answer, another is asked, if there is one."""
        if model.kind == EXTERNAL:
            assert model.external is not None and model.secret is not None
            return await _text(self._external.model(model.key, model.external, model.secret).generate(request))
        attempts = Attempts(self._router, model.key)
        while True:
            replica = attempts.next()
            try:
                return await _text(self._router.generate(replica, request))
            except ELSEWHERE as error:
                attempts.failed(replica, error)


def _ignores_schemas(model: Model) -> bool:
    return model.external is not None and "response_format" in PROVIDERS[model.external["provider"]].ignored


async def _text(source: _Source) -> str:
    parts: list[str] = []
    try:
        while events := await source.next_events():
            parts += [event.text for event in events if isinstance(event, Delta)]
    except BaseException:
        source.cancel()
        raise
    return "".join(parts)
