"""Waiting for what takes its time."""

from __future__ import annotations

import time

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_GROWTH = 1.5


class Deadline:
    """A moment until which something is asked for, often at first and then every two seconds."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self._next = _FIRST_PAUSE_S

    @property
    def has_passed(self) -> bool:
        """Whether asking should end."""
        return self._end is not None and time.monotonic() >= self._end

    def pause(self) -> float:
        """Seconds until to ask again."""
        pause, self._next = self._next, min(self._next * _GROWTH, _LONGEST_PAUSE_S)
        return pause if self._end is None else max(0.0, min(pause, self._end - time.monotonic()))
