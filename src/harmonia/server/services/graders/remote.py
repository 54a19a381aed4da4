"""Graders at other people's servers: `GET /info`, `GET /metadata_schema`, `POST /score`, `POST /batch_score`."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from harmonia.client.grades import Grade
from harmonia.config.control import Graders
from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.server.services.outbound import Answer, Outbound, OutboundError
from harmonia.threads import StringThread

SETTING = "ADAPTIVE_GRADERS__ALLOW_PRIVATE"
_ATTEMPTS = 5
_FIRST_WAIT_S = 0.25
_AT_ONCE = 8
"""Batches that are on their way at the same time."""
_JSON = {"content-type": "application/json"}
_REFUSALS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
"""What servers answer to a conversation that they do not take."""


class ServerInfo(msgspec.Struct, frozen=True):
    """What such a server says of itself."""

    name: str
    version: str
    description: str


class _Reward(msgspec.Struct, frozen=True):
    reward: float
    metadata: dict[str, Any] = {}


class _Rewards(msgspec.Struct, frozen=True):
    responses: list[_Reward]


class RemoteGraders:
    """Asks servers that score. What passes is tried again, each time after twice the wait."""

    def __init__(self, settings: Graders) -> None:
        self._settings = settings
        self._outbound = Outbound(
            allow_private=settings.allow_private, setting=SETTING, seconds=settings.remote_seconds
        )
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def close(self) -> None:
        """Close every connection."""
        await self._outbound.close()

    async def info(self, url: str) -> ServerInfo:
        """What the server says of itself, asked once; OutboundError if it does not."""
        answer = await self._outbound.ask("GET", f"{url}/info")
        try:
            return msgspec.json.decode(answer.body, type=ServerInfo)
        except msgspec.DecodeError as error:
            raise OutboundError(
                f"{url}/info gave no name, version and description: {error}", is_passing=False
            ) from error

    async def metadata_schema(self, url: str) -> dict[str, Any] | None:
        """The JSON schema of what the server wants to know beside the conversation; None if it does not say."""
        try:
            found = (await self._outbound.ask("GET", f"{url}/metadata_schema")).json()
        except OutboundError:
            return None
        return found if isinstance(found, dict) else None

    async def wanted_metadata(self, name: str, url: str) -> dict[str, Any] | None:
        """The same before a job, whose records must fit: None if the server says that it has no such schema.

        name: the grader, for messages. InvalidRequestError if the server does not answer.
        """
        try:
            found = (await self._outbound.ask("GET", f"{url}/metadata_schema")).json()
        except OutboundError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise _wrong(name, f"it does not tell what it wants to know of a record: {error}") from error
        if not isinstance(found, dict):
            raise _wrong(name, f"what it wants to know of a record is no JSON schema: {found!r:.80}")
        return found

    async def score(self, name: str, url: str, threads: Sequence[StringThread]) -> list[Grade | HarmoniaError]:
        """The reward of each conversation with what the server added to it, or why there is none.

        InvalidRequestError: the server answers otherwise than it should, or refuses the conversation; UnavailableError:
        it does not answer. name: the grader.
        """
        size = self._settings.remote_batch
        batches = [threads[start : start + size] for start in range(0, len(threads), size)]
        found = await asyncio.gather(*(self._batch(name, url, batch) for batch in batches))
        return [reward for batch in found for reward in batch]

    async def _batch(self, name: str, url: str, threads: Sequence[StringThread]) -> list[Grade | HarmoniaError]:
        try:
            return [*await self._rewards(name, url, threads)]
        except _RefusedError as refusal:
            if len(threads) == 1:
                return [_wrong(name, str(refusal))]
        except (InvalidRequestError, UnavailableError) as error:
            return [error] * len(threads)
        # A server refuses a batch as a whole; asked for each alone, it says which conversations it means.
        found = await asyncio.gather(*(self._batch(name, url, [thread]) for thread in threads))
        return [reward for alone in found for reward in alone]

    async def _rewards(self, name: str, url: str, threads: Sequence[StringThread]) -> list[Grade]:
        content = json.dumps({"requests": [_request(thread) for thread in threads]}).encode()
        async with self._slots:
            answer = await self._patiently(name, f"{url}/batch_score", content)
        try:
            rewards = msgspec.json.decode(answer.body, type=_Rewards).responses
        except msgspec.DecodeError as error:
            raise _wrong(name, f"its answer is no list of rewards: {error}") from error
        if len(rewards) != len(threads):
            raise _wrong(name, f"it gave {len(rewards)} rewards for {len(threads)} conversations")
        for item in rewards:
            if not math.isfinite(item.reward):
                raise _wrong(name, f"it gave the reward {item.reward}")
        return [Grade(item.reward, name, json.dumps(item.metadata) if item.metadata else None) for item in rewards]

    async def _patiently(self, name: str, url: str, content: bytes) -> Answer:
        wait_s = _FIRST_WAIT_S
        for attempt in range(_ATTEMPTS):
            try:
                return await self._outbound.ask("POST", url, content=content, headers=_JSON)
            except OutboundError as error:
                if error.status in _REFUSALS:
                    raise _RefusedError(str(error)) from error
                if not error.is_passing:
                    raise _wrong(name, str(error)) from error
                if attempt == _ATTEMPTS - 1:
                    raise UnavailableError(
                        f"grader {name!r}: {error}, {_ATTEMPTS} times; see whether its server is up, or raise "
                        "ADAPTIVE_GRADERS__REMOTE_SECONDS if it is slow"
                    ) from error
            # Spread, so that callers that failed together do not come back together.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
            wait_s *= 2
        raise AssertionError("the last attempt returns or raises")


class _RefusedError(Exception):
    """The server takes none of what it was sent."""


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"grader {name!r}: {what}; mend its server, or give the grader another address", field="url"
    )


def _request(thread: StringThread) -> dict[str, Any]:
    metadata = thread.metadata if isinstance(thread.metadata, dict) else None
    turns = [{"role": turn.role, "content": turn.content} for turn in thread.get_turns()]
    return {"turns": turns, "metadata": metadata, "id": None}
