"""The process in which a grader's function runs: it reads one request, gives up its rights, and answers line by line.

Started by `harmonia.server.services.graders.sandbox`; it holds no secrets, and whatever it writes is checked there.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any, SupportsFloat

from harmonia.errors import InvalidRequestError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.isolation import Limits, confine
from harmonia.graders.source import GradeFunction, read_grade
from harmonia.threads import StringThread

MAX_TEXT = 2000
"""Characters of a message."""

Tell = Callable[[dict[str, Any]], None]


def main() -> None:
    """Read the request from standard input, answer to what was standard output; prints of the code go nowhere."""
    request = json.load(sys.stdin.buffer)
    tell = _private_output()
    # Made before the rights are gone: a loop needs a pair of sockets.
    with asyncio.Runner() as runner:
        runner.get_loop()
        warnings = confine(Limits(request["memory_bytes"], request["cpu_seconds"]))
        tell({"ready": warnings})
        grade = _load(request["name"], request["code"], tell)
        if grade is not None:
            for sample in request["threads"]:
                tell(_graded(runner, grade, sample))
        os._exit(0)  # threads, exit handlers and finalizers of the code do not matter any longer


def _private_output() -> Tell:
    output = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    dumps, write = json.dumps, os.write  # kept from code that replaces them in their modules

    def tell(message: dict[str, Any]) -> None:
        line = dumps(message).encode() + b"\n"
        while line:
            line = line[write(output, line) :]

    return tell


def _load(name: str, code: str, tell: Tell) -> GradeFunction | None:
    """The function, after telling of each check."""
    check: Callable[[str, str | None], bool] = lambda what, mistake: _checked(tell, what, mistake)  # noqa: E731
    if not check("syntax", _syntax_mistake(code)):
        return None
    try:
        grade = read_grade(name, code)
    except InvalidRequestError as error:
        check("definition", error.message)
        return None
    except BaseException as error:  # noqa: BLE001 - whatever the code throws is its answer
        check("definition", _shown(error))
        return None
    check("definition", None)
    return grade if check("signature", _signature_mistake(grade)) else None


def _checked(tell: Tell, what: str, mistake: str | None) -> bool:
    tell({"check": what, "passed": mistake is None, "message": (mistake or "")[:MAX_TEXT]})
    return mistake is None


def _syntax_mistake(code: str) -> str | None:
    try:
        compile(code, "<grader>", "exec")
    except IndentationError:
        return None  # sources of nested functions are indented as a whole; reading them takes that away
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, MemoryError, RecursionError) as error:
        return _shown(error)
    return None


def _signature_mistake(grade: GradeFunction) -> str | None:
    try:
        inspect.signature(grade).bind(None)
    except (TypeError, ValueError) as error:
        return f"grade takes one argument, the thread: {error}"
    return None


def _graded(runner: asyncio.Runner, grade: GradeFunction, sample: dict[str, Any]) -> dict[str, Any]:
    thread = StringThread.from_json(sample["thread"])
    thread.metadata = sample["metadata"]
    try:
        return _result(runner.run(_awaited(grade, thread)))
    except IgnoreGradeException as error:
        return {"ignored": str(error)[:MAX_TEXT]}
    except BaseException as error:  # noqa: BLE001 - exits and interrupts of the code are its answer too
        return {"error": _shown(error)}


async def _awaited(grade: GradeFunction, thread: StringThread) -> Any:
    return await grade(thread)


def _result(value: Any) -> dict[str, Any]:
    if not isinstance(value, SupportsFloat):
        return {"wrong": f"grade returned {_cut(repr(value))} of type {type(value).__name__}; return a number"}
    score = float(value)
    if not math.isfinite(score):
        return {"wrong": f"grade returned {score}; return a finite number"}
    return {"score": score}


def _shown(error: BaseException) -> str:
    return _cut(f"{type(error).__name__}: {error}")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


if __name__ == "__main__":
    main()
