"""How a recipe's exception is shown: with the frames of its author, without those of the machinery around it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from traceback import StackSummary, TracebackException

_PACKAGE = Path(__file__).parents[2]
_MACHINERY = (_PACKAGE, Path(asyncio.__file__).parent)
_RECIPES = _PACKAGE / "recipes"  # these are ours, and their authors' too


def recipe_traceback(error: BaseException) -> str:
    """The traceback of an exception and its causes; an exception that only machinery has seen keeps all frames."""
    report = TracebackException.from_exception(error)
    _prune(report, set())
    return "".join(report.format())


def _prune(report: TracebackException | None, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    authors = [frame for frame in report.stack if not _is_machinery(Path(frame.filename))]
    is_cause = len(seen) > 1  # of an exception that shows where in the recipe it came up
    report.stack = StackSummary.from_list(authors if authors or is_cause else report.stack)
    for other in (report.__cause__, report.__context__, *(report.exceptions or ())):
        _prune(other, seen)


def _is_machinery(file: Path) -> bool:
    if str(file).startswith("<frozen importlib"):
        return True
    return not file.is_relative_to(_RECIPES) and any(file.is_relative_to(folder) for folder in _MACHINERY)
