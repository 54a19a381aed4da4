"""Base models as text sees them: one tokenizer each, read once, shared by every instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from harmonia.errors import TokenizerMismatchError
from harmonia.models.source import open_model
from harmonia.models.tokenizer import ModelTokenizer, load_tokenizer, tokenizer_difference
from harmonia.worker.instances import Instance
from harmonia.worker.intake import Intake, Limits

MakeIntake = Callable[[Limits, ModelTokenizer], Intake]


class Bases:
    """An intake per base model, by the path of its files."""

    def __init__(self, make: MakeIntake) -> None:
        self._make = make
        self._intakes: dict[Path, asyncio.Task[Intake]] = {}
        self._differences: dict[tuple[int, int], asyncio.Task[str | None]] = {}
        """Between tokenizers, which live as long as this: by their identity."""

    async def intake(self, path: str) -> Intake:
        """The intake of the base model at this path. Errors: UnsupportedModelError for files that cannot be read."""
        key = Path(path).resolve()
        if key not in self._intakes:
            self._intakes[key] = asyncio.create_task(self._open(key))
        opening = self._intakes[key]
        try:
            return await asyncio.shield(opening)
        finally:
            if opening.done() and (opening.cancelled() or opening.exception() is not None):
                self._intakes.pop(key, None)

    async def require_same_tokenizer(self, student: Instance, teacher: Instance) -> None:
        """Raise `TokenizerMismatchError` if a token of one would mean something else to the other."""
        one, other = student.intake.tokenizer, teacher.intake.tokenizer
        if one is other:
            return
        key = id(one), id(other)
        if key not in self._differences:  # 50,000 tokens take 50 ms: not here, and not for each of a thousand calls
            self._differences[key] = asyncio.create_task(asyncio.to_thread(tokenizer_difference, one, other))
        difference = await asyncio.shield(self._differences[key])
        if difference is not None:
            raise TokenizerMismatchError(
                f"the teacher {teacher.name!r} has another tokenizer than {student.name!r}: {difference}; learn from a "
                "model of the same family",
                field="teacher",
            )

    async def _open(self, path: Path) -> Intake:
        limits, tokenizer = await asyncio.to_thread(open_base, path)
        return self._make(limits, tokenizer)


def open_base(path: str | Path) -> tuple[Limits, ModelTokenizer]:
    """A base model's limits and its tokenizer, ready for use."""
    source = open_model(path)
    tokenizer = load_tokenizer(source)
    tokenizer.token_bytes(0)  # builds its table now, not in front of the first request
    config = source.config
    return Limits(config.family, config.vocab_size, config.max_seq_len), tokenizer
