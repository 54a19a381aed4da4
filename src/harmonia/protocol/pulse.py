"""Whether a process still does something: its parent asks it over a pair of sockets, where every byte wants one back.

A process that died closes its end and is seen otherwise; this is for those that hang. Time counts in turns of the one
who asks, so that a parent that was stopped or slow itself does not take the pause for its child's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

QUESTIONS = 4
"""Asked during the longest silence: it is noticed when it has lasted between once and 1.25 times as long."""
_BYTES = 64


class Pulse:
    """The end of the one who asks. Close it when nobody asks any longer."""

    def __init__(self, line: socket.socket, max_silence_s: float) -> None:
        """max_silence_s: the longest time without an answer. The first may take any time: processes start slowly."""
        line.setblocking(False)
        self._line = line
        self._pause_s = max_silence_s / QUESTIONS
        self._has_answered = False
        self._unanswered = 0

    async def lost(self) -> None:
        """Ask, and return when the other side has been silent for too long; never if it closed its end."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line, self._hear)
        try:
            while self._unanswered <= QUESTIONS:
                with suppress(OSError):  # it is gone, or has left thousands of questions unanswered
                    self._line.send(b"?")
                await asyncio.sleep(self._pause_s)
                self._unanswered += self._has_answered
        finally:
            loop.remove_reader(self._line)

    def close(self) -> None:
        """Let go of the line."""
        self._line.close()

    def _hear(self) -> None:
        with suppress(OSError):
            if self._line.recv(_BYTES):
                self._has_answered, self._unanswered = True, 0
                return
        self._has_answered, self._unanswered = False, 0
        asyncio.get_running_loop().remove_reader(self._line)


@contextmanager
def answering(line: socket.socket) -> Iterator[None]:
    """Answer from the running event loop while the context lasts: if the loop hangs, so does the process."""
    loop = asyncio.get_running_loop()

    def answer() -> None:
        with suppress(OSError):
            if asked := line.recv(_BYTES):
                line.send(asked)
                return
        loop.remove_reader(line)

    line.setblocking(False)
    loop.add_reader(line, answer)
    try:
        yield
    finally:
        loop.remove_reader(line)


def answer_forever(line: socket.socket) -> None:
    """Answer from this thread, for a process whose main thread may be busy for as long as its work takes."""
    line.setblocking(True)
    with suppress(OSError):
        while asked := line.recv(_BYTES):
            line.sendall(asked)
