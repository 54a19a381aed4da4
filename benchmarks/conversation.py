"""A process that answers lines of JSON: started in a session of its own, asked, paused, and ended without leftovers."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from benchmarks.errors import BenchmarkError

STDERR_LINES = 15
SECONDS_TO_LEAVE = 10


class Pausable(ABC):
    """Processes that can be stopped while others are measured."""

    @property
    @abstractmethod
    def processes(self) -> Mapping[int, str]:
        """Its processes, for `company.usage`."""

    @abstractmethod
    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes that are still there."""

    def pause(self) -> None:
        """Stop every thread of it: some spin for a while, or for ever, when idle."""
        self.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run, and pause it again."""
        self.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()


class Conversation(Pausable):
    """The harness's end of `peers.channel.converse`; `conversing` makes one."""

    def __init__(self, name: str, popen: subprocess.Popen[str], errors: IO[str]) -> None:
        self._name = name
        self._popen = popen
        self._errors = errors

    @property
    def processes(self) -> Mapping[int, str]:
        """The session that holds them all."""
        return {self._popen.pid: "engine"}

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a line and wait for the answer; raises `BenchmarkError` with the process's words if it fails."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps(message) + "\n")
            self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self._name} ended with status {self._popen.wait()}:\n{last_words(self._errors)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes that are still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def close(self) -> None:
        """Hang up, give the process time to leave, then end what it left behind."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(SECONDS_TO_LEAVE)
        self.send_signal(signal.SIGKILL)
        self._popen.wait()
        self._popen.stdout.close()


@contextlib.contextmanager
def conversing(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Conversation]:
    """Start a process, and end it with all that it started afterwards."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=dict(environment),
            # A session of its own, so that a pause and an end reach every process that it starts.
            start_new_session=True,
        )
        conversation = Conversation(name, popen, errors)
        stack.callback(conversation.close)
        yield conversation


def last_words(errors: IO[str]) -> str:
    """Return the last lines that a process wrote there."""
    errors.seek(0)
    return "".join(errors.readlines()[-STDERR_LINES:]).rstrip()
