"""`harmonia up` as people run it: a process, its words, its signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

COMMAND = [sys.executable, "-m", "harmonia.cli", "up", "--port", "0"]
READY = re.compile(r"ready at (http://\S+),")
KEY = re.compile(r"shown only now: (hk-\S+)")


def environment(**variables: str) -> dict[str, str]:
    """Of this process, without what it is set to itself."""
    own = ("ADAPTIVE_", "OTEL_")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(own)}, **variables}


class Started:
    """A process that says where it answers; `words` holds what it said until now."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.words = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait(READY)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.words += line
                self._news.notify_all()
        with self._news:
            self._reader_ended = True
            self._news.notify_all()

    _reader_ended = False

    def wait(self, words: re.Pattern[str], timeout_s: float = 180) -> re.Match[str]:
        """The words, once it says them."""
        with self._news:
            self._news.wait_for(lambda: words.search(self.words) or self._reader_ended, timeout_s)
        found = words.search(self.words)
        assert found, self.words
        return found

    @property
    def url(self) -> str:
        return self.wait(READY)[1]

    @property
    def api_key(self) -> str:
        return self.wait(KEY)[1]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(60)
        return code

    def client(self, api_key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {api_key}"}, timeout=60)


@contextmanager
def started(folder: Path, *options: str, **variables: str) -> Iterator[Started]:
    """`harmonia up` in a data folder; killed at the end if it is still there."""
    command = [*COMMAND, "--data-dir", str(folder), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**variables)) as process:
        try:
            yield Started(process)
        finally:
            process.kill()


def chat(model: str, content: str, **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, **more}
