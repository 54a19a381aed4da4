"""Tells those who watch this worker when its models change: one appears, goes, or has new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from harmonia.protocol.messages import Description

_PATIENCE_S = 1.0


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(eq=False)
class _Watch:
    """Somebody who waits for the next change."""

    changed: asyncio.Future[None] = field(default_factory=_future)
    told: asyncio.Future[None] = field(default_factory=_future)


class Notices:
    """Counts the changes, and wakes those who wait for the next one."""

    def __init__(self) -> None:
        self.revision = 1
        self._watches: list[_Watch] = []

    def models_change(self) -> list[asyncio.Future[None]]:
        """Something changed. Returns what is done when those who waited were told."""
        self.revision += 1
        watches, self._watches = self._watches, []
        for watch in watches:
            _resolve(watch.changed)
        return [watch.told for watch in watches]

    async def models_changed(self) -> None:
        """Something changed; returns when those who waited were told."""
        told = self.models_change()
        if told:
            await asyncio.wait(told, timeout=_PATIENCE_S)

    async def unlike(self, revision: int, describe: Callable[[], Awaitable[Description]]) -> Description:
        """The description, as soon as it is another than that of a revision."""
        watch = _Watch()
        try:
            if self.revision == revision:
                self._watches.append(watch)
                await watch.changed
            return await describe()
        finally:
            if watch in self._watches:
                self._watches.remove(watch)
            _resolve(watch.told)
