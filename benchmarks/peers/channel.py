"""The words between the harness and the process of an engine: one JSON object a line, answered in order."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Protocol, TextIO


class EngineError(Exception):
    """What the caller of a benchmark can mend; it reaches the harness as its text."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an engine must be ready for before its first token."""

    model: str
    precision: str
    threads: int
    max_sequences: int
    max_length: int


class Engine(Protocol):
    """A loaded engine."""

    @property
    def version(self) -> str:
        """The version of the engine."""
        ...

    @property
    def precision(self) -> str:
        """The precision of the weights that it computes with."""
        ...

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[int]]:
        """Run all prompts at once, greedily, each to exactly `num_output_tokens` tokens."""
        ...


def require(module: str, remedy: str) -> ModuleType:
    """Import a peer, or say where it is missing and how to install it there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EngineError(
            f"{error.name!r} is not installed in {sys.executable}; {remedy}, or name another interpreter with --python"
        ) from error


Answering = Callable[..., dict[str, object]]


def converse(begin: Callable[..., tuple[dict[str, object], Answering]]) -> None:
    """Answer the harness until it hangs up.

    begin: takes the first line, and gives the answer to it and what answers all further ones.
    """
    with _private_stdout() as out:
        try:
            told, answering = begin(**json.loads(sys.stdin.readline()))
            _answer(out, told)
            for line in sys.stdin:
                _answer(out, answering(**json.loads(line)))
        except EngineError as error:
            _answer(out, {"error": str(error)})


def serve(load: Callable[[Job], Engine]) -> None:
    """Let a loaded engine generate what the harness asks for."""

    def begin(**job: Any) -> tuple[dict[str, object], Answering]:
        engine = load(Job(**job))
        return {"version": engine.version, "precision": engine.precision}, partial(_run, engine)

    converse(begin)


def _run(engine: Engine, prompts: list[list[int]], num_output_tokens: int) -> dict[str, object]:
    start = time.perf_counter()
    tokens = engine.generate(prompts, num_output_tokens)
    wall_s = time.perf_counter() - start
    lengths = {len(sequence) for sequence in tokens}
    if len(tokens) != len(prompts) or lengths != {num_output_tokens}:
        raise EngineError(
            f"asked for {len(prompts)} x {num_output_tokens} tokens, got {len(tokens)} sequences of {sorted(lengths)};"
            " the figure would not be comparable"
        )
    return {"wall_s": wall_s, "tokens": tokens}


def _answer(out: TextIO, message: dict[str, object]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _private_stdout() -> TextIO:
    # Peers print to file descriptor 1, from C too; their words must not mix with ours.
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(descriptor, "w", encoding="utf-8")
