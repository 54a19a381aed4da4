"""What a client can do, found by looking at it, and which of it was done."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast

Client = TypeVar("Client")
Run = Callable[[Any], Any]
"""What runs a coroutine to its end, like `asyncio.Runner.run`."""
GENERATED = "_gql_client"
"""Under this name the published SDK keeps operations for which no resource has a method."""


def methods_of(client: object, package: str, prefix: str = "") -> Iterator[str]:
    """Names like `graders.create.function`; a resource with two names comes once.

    package: where the classes of resources stand.
    """
    seen: list[object] = []
    for name in (name for name in dir(client) if not name.startswith("_")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of old names
            found = getattr(client, name)
        if inspect.isroutine(found):
            yield prefix + name
        elif type(found).__module__.startswith(package) and found not in seen:
            seen.append(found)
            yield from methods_of(found, package, f"{prefix}{name}.")


class Surface:
    """All methods of a client, of which every one has to answer or to be excused.

    client: synchronous; asynchronous if there is `run`.
    """

    def __init__(self, client: object, package: str, run: Run | None = None) -> None:
        self._client = client
        self._package = package
        self._run = run
        self._answered: set[str] = set()

    def of(self, _: type[Client]) -> Client:
        """The client as its user sees it, synchronous in any case."""
        return cast(Client, self._watched(self._client, ""))

    def check(self, excused: dict[str, str]) -> None:
        """Fail for methods that never answered without an excuse, and for excuses that nobody needs.

        excused: the reason for each name, or for the last part of names after a dot.
        """
        left = set(methods_of(self._client, self._package)) - self._answered
        assert self._answered, "no method answered"
        parts = {name: (name, f".{name.rpartition('.')[2]}") for name in left}
        excuses = {name: next((part for part in found if part in excused), None) for name, found in parts.items()}
        never = sorted(name for name, excuse in excuses.items() if excuse is None)
        assert not never, f"these methods never answered: {', '.join(never)}"
        idle = sorted(excused.keys() - excuses.values())
        assert not idle, f"these need no excuse: {', '.join(idle)}"

    def _watched(self, found: Any, path: str) -> Any:
        if inspect.isroutine(found):
            return functools.partial(self._call, found, path)
        is_resource = isinstance(found, type(self._client)) or type(found).__module__.startswith(self._package)
        return _Watched(found, path, self._watched) if is_resource or path == GENERATED else found

    def _call(self, method: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        answer = method(*args, **kwargs)
        if self._run is not None:
            answer = self._run(_answer(answer)) if inspect.isawaitable(answer) else answer
            answer = _Awaited(answer, self._run) if isinstance(answer, AsyncIterable) else answer
        self._answered.add(path)
        return self._watched(answer, "") if isinstance(answer, type(self._client)) else answer


class _Watched:
    """A client, or a resource of one."""

    def __init__(self, inner: object, path: str, watched: Callable[[Any, str], Any]) -> None:
        self._inner = inner
        self._path = path
        self._watched = watched

    def __getattr__(self, name: str) -> Any:
        return self._watched(getattr(self._inner, name), f"{self._path}.{name}".lstrip("."))


class _Awaited:
    """A stream that is waited for piece by piece."""

    def __init__(self, stream: Any, run: Run) -> None:
        self._stream = stream
        self._run = run

    def __iter__(self) -> Iterator[Any]:
        pieces, end = aiter(self._stream), object()
        while (piece := self._run(_next(pieces, end))) is not end:
            yield piece

    def __enter__(self) -> _Awaited:
        self._run(self._stream.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._stream.__aexit__(*error))


async def _answer(awaited: Awaitable[Any]) -> Any:
    return await awaited


async def _next(pieces: AsyncIterator[Any], end: object) -> Any:
    return await anext(pieces, end)
