"""Peak memory of this process: what no file backs on a CPU, what torch handed out on a GPU."""

import re
import threading
from pathlib import Path
from types import ModuleType

SAMPLE_S = 0.001
STATUS = Path("/proc/self/status")


class Peak:
    """Counts from its making on; while it is `watch`ed, the most that was seen is kept."""

    def __init__(self, torch: ModuleType, device: str) -> None:
        """Make it after the imports and before anything is loaded."""
        self._torch = torch
        self._on_gpu = device == "cuda"
        self._first = self._now()
        self._most = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Begin to look, every millisecond: not in a run that is timed."""
        self._most = 0
        if self._on_gpu:
            self._torch.cuda.reset_peak_memory_stats()
            return
        self._closed.clear()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop looking: bytes at most, less those of the beginning."""
        if self._on_gpu:
            return int(self._torch.cuda.max_memory_allocated())
        assert self._thread is not None
        self._closed.set()
        self._thread.join()
        return self._most - self._first

    def _look(self) -> None:
        self._most = self._now()
        while not self._closed.wait(SAMPLE_S):
            self._most = max(self._most, self._now())

    def _now(self) -> int:
        if self._on_gpu:
            return 0
        found = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
        return 0 if found is None else int(found[1]) * 1024
