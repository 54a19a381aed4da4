"""What to run, on what, and how it is told."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.gpu.anchors import BY_KEY
from benchmarks.work import FIRST_TOKEN_ID
from harmonia.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """Parsed options."""

    models: tuple[str, ...]
    groups: tuple[str, ...]
    device: str
    counts: tuple[int, ...]
    quick: bool
    micro_batch: int | None
    traces: tuple[str, ...]
    out: str | None
    merge: tuple[str, ...]
    write_results: bool
    accelerate: str | None = None
    """A real model, on which the recipe for drafts is run."""

    @property
    def num_input(self) -> int:
        """Tokens of a prompt."""
        return 512 if self.device == "cuda" else 32

    def num_output(self, n: int) -> int:
        """Tokens that each of `n` requests generates."""
        if self.device != "cuda":
            return 9
        return (128 if n < 64 else 64) if self.quick else 256

    @property
    def is_tiny(self) -> bool:
        """Sizes to see that everything runs, not to measure."""
        return self.device != "cuda"


@dataclass
class Rows:
    """Rows as they are done: a line for people, a line of JSON for `--out`, all of them for the table at the end."""

    out: str | None = None
    done: list[dict[str, object]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def add(self, key: str, **figures: float) -> None:
        """A row and its figures, named as the anchors name them."""
        self._keep({"key": key, **{name: round(value, 3) for name, value in figures.items()}})
        cells = [_cell(f"{key}/{name}", name, value) for name, value in figures.items()]
        self.say(f"{key:32} " + "   ".join(cells))

    def failed(self, key: str, error: Exception) -> None:
        """A row that could not be had; the others go on."""
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self._keep({"key": key, "error": text})
        self.say(f"{key:32} FAILED {text}")
        last = traceback.extract_tb(error.__traceback__)[-4:]
        self.say("    " + " <- ".join(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in reversed(last)))

    def note(self, key: str, text: str) -> None:
        """A text to keep: the machine, a time line."""
        self._keep({"key": key, "text": text})
        self.say(f"{key}:\n{text}")

    def merge(self, path: str) -> None:
        """Take in what an earlier run kept."""
        self.done += [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]

    def texts(self) -> dict[str, str]:
        """The newest text of each key."""
        return {str(row["key"]): str(row["text"]) for row in self.done if "text" in row}

    def failures(self) -> dict[str, str]:
        """Rows that could not be had the last time they were tried."""
        newest = {str(row["key"]): row for row in self.done}
        return {key: str(row["error"]) for key, row in newest.items() if "error" in row}

    def say(self, text: str) -> None:
        """A line with the seconds since the start."""
        sys.stdout.write(f"[{time.perf_counter() - self.began:6.1f}] {text}\n")
        sys.stdout.flush()

    @contextmanager
    def trying(self, key: str) -> Iterator[None]:
        """What goes wrong inside becomes a row."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a row that fails must not cost the others
            self.failed(key, error)

    def figure(self, key: str) -> float | None:
        """A figure of a row that is done."""
        row_key, _, name = key.rpartition("/")
        for row in reversed(self.done):
            if row["key"] == row_key and isinstance(row.get(name), float | int):
                return float(row[name])  # type: ignore[arg-type]
        return None

    def _keep(self, row: dict[str, object]) -> None:
        self.done.append(row)
        if self.out is not None:
            with Path(self.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class Prompts:
    """Random prompts; no two are alike, so no cache helps."""

    def __init__(self, model: ModelConfig) -> None:
        self._rng = np.random.default_rng(0)
        self._vocab = model.vocab_size

    def draw(self, n: int, size: int) -> list[np.ndarray]:
        """`n` prompts of `size` tokens."""
        return list(self._rng.integers(FIRST_TOKEN_ID, self._vocab, (n, size), dtype=np.int32))


def _cell(key: str, name: str, value: float) -> str:
    anchor = BY_KEY.get(key)
    text = f"{name} {value:.4g}" if abs(value) < 1000 else f"{name} {value:.0f}"
    if anchor is None or anchor.goal is None:
        return text
    return f"{text} (goal {anchor.goal:g}{'' if anchor.met(value) else ', NOT MET'})"
