"""Running functions that people wrote as graders: each call in a process of its own that can do nothing but compute."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from harmonia.config.control import Graders
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.fleet.process import exited
from harmonia.server.services import processes
from harmonia.threads import StringThread

MAX_SOURCE = 256 * 1024
"""Characters of a function's source."""
_LINE_BYTES = 64 * 1024
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_CHECKS = ("syntax", "definition", "signature", "run", "result")
_WHAT = {
    "syntax": "the source is Python",
    "definition": "it defines `async def grade(thread) -> float`",
    "signature": "grade takes one argument",
    "run": "grade runs on the sample",
    "result": "grade returns a finite number",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What was found out about a source. warnings: how isolation is weaker here than it could be."""

    checks: tuple[Check, ...]
    warnings: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether it can be used as a grader."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a function made of one thread: a score, or why there is none. ignored: it asked not to be counted."""

    score: float | None = None
    error: str | None = None
    ignored: bool = False


class _StoppedError(Exception):
    """The process ended before it had answered; the message says why."""


class Sandbox:
    """Runs sources; as many processes at a time as the settings allow, others wait."""

    def __init__(self, settings: Graders) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.processes)

    async def validate(self, code: str, sample: StringThread) -> Validation:
        """Look at a source, and run it on a sample."""
        found: dict[str, Check] = {}
        warnings: tuple[str, ...] = ()
        try:
            async with contextlib.aclosing(self._answers("grader", code, [sample])) as answers:
                async for answer in answers:
                    warnings = tuple(str(item) for item in answer.get("ready", warnings))
                    found.update((check.name, check) for check in _checks_in(answer))
        except _StoppedError as error:
            pending = next(name for name in _CHECKS if name not in found)
            found[pending] = Check(pending, False, str(error))
        return Validation(tuple(found[name] for name in _CHECKS if name in found), warnings)

    async def grade(self, name: str, code: str, threads: Sequence[StringThread]) -> list[Outcome]:
        """An outcome for each thread, in order. A process that dies takes one thread with it, and the next begins anew.

        InvalidRequestError if the source defines no grader.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(threads):
            outcomes += await self._in_one_process(name, code, threads[len(outcomes) :])
        return outcomes

    async def _in_one_process(self, name: str, code: str, threads: Sequence[StringThread]) -> list[Outcome]:
        """Outcomes until the process has had enough; the last one may be that it died."""
        outcomes: list[Outcome] = []
        started = False
        try:
            async with contextlib.aclosing(self._answers(name, code, threads)) as answers:
                async for answer in answers:
                    _require_passed(name, answer)
                    started = started or answer.get("check") == "signature"
                    if not answer.keys() & {"ready", "check"}:
                        outcomes.append(_outcome(answer))
        except _StoppedError as error:
            if not started:
                raise _unusable(name, f"could not be loaded: {error}") from error
            outcomes.append(Outcome(error=str(error)))
        return outcomes

    async def _answers(
        self, name: str, code: str, threads: Sequence[StringThread]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Every line that the process writes, each in its time."""
        if len(code) > MAX_SOURCE:
            raise InvalidRequestError(f"the source has {len(code)} characters, at most {MAX_SOURCE} are allowed")
        seconds = self._settings.seconds
        request = {
            "name": name,
            "code": code,
            "threads": [{"thread": thread.to_json(), "metadata": thread.metadata} for thread in threads],
            "memory_bytes": self._settings.memory_bytes,
            "cpu_seconds": math.ceil(seconds * (len(threads) + 1)) + 1,
        }
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="grader-") as folder:
                process = await _start(folder)
                try:
                    assert process.stdin is not None
                    with contextlib.suppress(ConnectionError):
                        process.stdin.write(json.dumps(request).encode())
                        await process.stdin.drain()
                        process.stdin.close()
                    yield await _ready(process)
                    left = len(threads) + 3
                    while left:
                        answer = await _line(process, seconds)
                        yield answer
                        left = 0 if answer.get("passed") is False else left - 1
                finally:
                    await _end(process)


async def _start(folder: str) -> asyncio.subprocess.Process:
    """A process with nothing of ours: no environment, no open files, an empty folder."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-B", "-X", "utf8", "-m", "harmonia.graders.confined"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env={"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        limit=_LINE_BYTES,
    )


async def _ready(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The first answer. That there is none is our fault, not that of the code, which runs after it."""
    try:
        return await _line(process, _START_SECONDS)
    except _StoppedError as error:
        raise HarmoniaError(f"the process for graders did not start: {error}; the server's log has more") from error


async def _line(process: asyncio.subprocess.Process, seconds: float) -> dict[str, Any]:
    """The next answer. What comes from there is not trusted, so anything but a JSON object ends it."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), seconds)
    except TimeoutError:
        raise _StoppedError(f"it took longer than {seconds:g} s") from None
    except ValueError:
        raise _StoppedError(f"it wrote more than {_LINE_BYTES} bytes") from None
    if not line:
        raise _StoppedError(await _cause(process))
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _StoppedError("it wrote what is no answer")
    return answer


async def _cause(process: asyncio.subprocess.Process) -> str:
    """Why it will not write any more."""
    try:
        code = await asyncio.wait_for(exited(process), _END_SECONDS)
    except TimeoutError:
        return "it closed its output"
    if code == -signal.SIGXCPU:
        return "it used up its computing time"
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended by itself, with status {code}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it, and throw away what it wrote and nobody asked for: its pipe closes at the end of that."""
    processes.kill_group(process.pid)
    await exited(process)
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            while await process.stdout.read(_LINE_BYTES):
                pass


def _checks_in(answer: dict[str, Any]) -> list[Check]:
    """The checks that an answer stands for."""
    if "check" in answer:
        name, passed = str(answer["check"]), answer.get("passed") is True
        return [Check(name, passed, str(answer.get("message") or _WHAT.get(name, "")))]
    if "ready" in answer:
        return []
    outcome = _outcome(answer)
    ran = Check("run", True, _WHAT["run"])
    if "wrong" in answer:
        return [ran, Check("result", False, str(outcome.error))]
    if outcome.score is None and not outcome.ignored:
        return [Check("run", False, str(outcome.error))]
    return [ran, Check("result", True, _WHAT["result"])]


def _require_passed(name: str, answer: dict[str, Any]) -> None:
    if answer.get("passed") is False:
        raise _unusable(name, f"does not pass the check {answer.get('check')!r}: {answer.get('message')}")


def _unusable(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the source of grader {name!r} {why}; validate it and update the grader", field="source_code"
    )


def _outcome(answer: dict[str, Any]) -> Outcome:
    score = answer.get("score")
    if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
        return Outcome(score=float(score))
    if "ignored" in answer:
        return Outcome(error=str(answer["ignored"]), ignored=True)
    return Outcome(error=str(answer.get("wrong") or answer.get("error") or "it gave no answer"))
