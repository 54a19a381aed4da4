"""The interface of a fleet: what starts, watches and stops workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from enum import StrEnum

import msgspec

from harmonia.config import WorkerConfig
from harmonia.errors import HarmoniaError, from_code


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    """It refused to load; starting it again would not help."""
    STOPPED = "stopped"


class WorkerFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a worker could not start, in the form in which errors travel."""

    code: str
    message: str
    details: dict[str, object] = {}

    def error(self) -> HarmoniaError:
        """The exception that this failure describes."""
        return from_code(self.code, self.message, self.details)


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet knows about one worker at one moment."""

    replica: str
    """Id of the worker within its fleet; a restarted worker keeps it."""
    key: str
    """Key of the backbone that it serves."""
    state: WorkerState
    socket: str
    """Unix socket on which it listens once it is ready."""
    pid: int | None = None
    restarts: int = 0
    progress: str = ""
    """The last line that the worker logged while loading."""
    failure: WorkerFailure | None = None


class Fleet(ABC):
    """Starts, watches and stops workers."""

    @abstractmethod
    async def start(self, config: WorkerConfig) -> str:
        """Begin to start a worker and return its replica id at once; `config.socket` may be empty."""

    @abstractmethod
    async def stop(self, replica: str) -> None:
        """End a worker gracefully and forget it."""

    @abstractmethod
    async def close(self) -> None:
        """End every worker."""

    @abstractmethod
    def statuses(self) -> tuple[WorkerStatus, ...]:
        """The present state of every worker."""

    @abstractmethod
    def watch(self) -> AsyncIterator[WorkerStatus]:
        """The present state of every worker, then each change."""
