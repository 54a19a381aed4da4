"""Functions that grade: what they must look like, and reading one from a source text."""

from __future__ import annotations

import inspect
import linecache
import textwrap
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from harmonia.client.grades import Grade
from harmonia.errors import InvalidRequestError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.threads import StringThread

GradeFunction = Callable[[StringThread], Awaitable[float]]

_FORM = "async def grade(thread: StringThread) -> float"


def require_async(grader_key: str, function: Any) -> GradeFunction:
    """The function itself. InvalidRequestError if calling it does not give something to await."""
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
    )
    if not is_async:
        raise InvalidRequestError(
            f"grader {grader_key!r} needs an async function, got {function!r}; write `{_FORM}`", field="async_fn"
        )
    graded: GradeFunction = function
    return graded


def read_grade(grader_key: str, source_code: str) -> GradeFunction:
    """The function `grade` that a source text defines. InvalidRequestError names the line that does not run."""
    file = f"<grader {grader_key}>"
    source = textwrap.dedent(source_code)  # as inspect.getsource gives the source of a nested function
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
    module = ModuleType(f"grader_{grader_key}")
    module.__dict__.update(StringThread=StringThread, Grade=Grade, IgnoreGradeException=IgnoreGradeException)
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise InvalidRequestError(
            f"the source code of grader {grader_key!r} does not run: {type(error).__name__}: {error}",
            field="source_code",
        ) from error
    if not callable(grade := module.__dict__.get("grade")):
        raise InvalidRequestError(
            f"the source code of grader {grader_key!r} must define `{_FORM}`", field="source_code"
        )
    return require_async(grader_key, grade)
