"""A model that is being spawned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from harmonia.client.inference import InferenceModel

ModelT = TypeVar("ModelT", bound=InferenceModel)
Progress = Callable[[float], None]


class Spawning(Generic[ModelT]):
    """What `spawn_*_with_progress` gives: wait for progress until it is exactly 1.0, then `get` the model.

    A failure raises from whichever of the two is awaited.
    """

    def __init__(self, spawn: Callable[[Progress], Coroutine[Any, Any, ModelT]]) -> None:
        self._share = 0.0
        self._told: float | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(spawn(self._note))
        self._task.add_done_callback(self._end)

    async def _await_progress(self) -> float:
        """The share that is done, as soon as it differs from the last one told; 1.0 means that the model is there."""
        while not self._task.done() and self._share == self._told:
            self._changed.clear()
            await self._changed.wait()
        if self._task.done():
            self._task.result()
            return 1.0
        self._told = self._share
        return self._share

    async def get(self) -> ModelT:
        """The model, once it is there."""
        return await asyncio.shield(self._task)

    def _note(self, share: float) -> None:
        # 1.0 is kept for the moment at which the model can be used; what came late or twice does not go backwards.
        self._share = max(self._share, min(float(share), 0.99))
        self._changed.set()

    def _end(self, task: asyncio.Task[ModelT]) -> None:
        if not task.cancelled():
            task.exception()  # looked at, so that an abandoned spawn does not complain at the end of the program
        self._changed.set()
