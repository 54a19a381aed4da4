"""Figures of Harmonia alone, each taken in a process of its own that holds the runtime."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.company import other_cores, usage
from benchmarks.conversation import conversing
from benchmarks.machine import Record
from benchmarks.peers.channel import Answering, converse
from benchmarks.process import environment_of
from benchmarks.serve import say


def own(command: str, job: Record, threads: int) -> Iterator[Record]:
    """Run the module of a command with this job; yields its records."""
    say(f"running {command}")
    with conversing(
        "harmonia", [sys.executable, "-m", f"benchmarks.{command}"], environment_of("harmonia", threads)
    ) as talk:
        before = usage(talk.processes)
        records = talk.ask(job)["records"]
        busy = other_cores(before, usage(talk.processes))
    for record in records:
        yield {
            "kind": command,
            "model": Path(job["model"]).name,
            **record,
            "other_cores": None if busy is None else round(busy, 2),
        }


def answer(run: Callable[..., list[Record]]) -> None:
    """Be that process: `run` takes the fields of the job."""

    def begin(**job: Any) -> tuple[dict[str, object], Answering]:
        return {"records": run(**job)}, _nothing_more

    converse(begin)


def _nothing_more(**message: Any) -> dict[str, object]:
    raise AssertionError(f"a figure is asked for once, got {message}")
