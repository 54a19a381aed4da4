"""The source of functions that grade."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

from harmonia.errors import InvalidRequestError

GradingFunction = Callable[[Any], Awaitable[float]]


def source_of(function: GradingFunction | str) -> str:
    """The source of an async function, as the server runs it; a text is taken as it is."""
    if isinstance(function, str):
        return function
    if not inspect.iscoroutinefunction(function):
        raise InvalidRequestError(f"{function!r} must be a function that is declared with async def", field="fn")
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise InvalidRequestError(f"{function!r} has no source that can be read: {error}", field="fn") from error
