"""Files of one JSON object per line as threads.

A row is internal (`prompt`, `metadata`, perhaps `completion` and more, see `formats`) or external: `input` or
`messages` as a list of `{"role", "content"}`, and perhaps `completion`, `metadata`, `feedbacks`, or
`preferred_completion` with `other_completion`. The first row that is either decides for the whole file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonia.client.data.formats import (
    ALL_FORMATS,
    DatasetPromptSample,
    DatasetSample,
    DatasetSampleType,
    parse_sample,
)
from harmonia.client.data.rows import FEEDBACK, external_thread, internal_thread, is_external
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger
from harmonia.threads import StringThread

log = get_logger(__name__)

_SHOWN_LINES = 10
_LINES_AT_A_TIME = 500  # then the event loop may do something else
_EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


class UnreadableDatasetError(InvalidRequestError, ValueError):
    """A data set whose file is missing, has lines that cannot be read (`lines` in the details), or no usable row."""


async def read_threads(
    file: Path,
    formats: Sequence[type[DatasetSampleType]] = ALL_FORMATS,
    feedback_key: str | None = None,
    quiet: bool = False,
) -> list[StringThread]:
    """The conversations of a file, with weights and metadata as `rows` says.

    formats: what internal rows may be; DatasetPromptSample alone also strips the answers of external rows, and
    DatasetSample alone refuses rows without one. feedback_key: the feedback to put into `metadata["res"]`.

    UnreadableDatasetError names every line that cannot be read, a file without a usable row, and a feedback that no row
    has. Rows without a conversation are skipped; the log says which, unless `quiet`.
    """
    rows = _Rows(file.name, tuple(formats), feedback_key)
    for count, (number, line) in enumerate(_lines(file), 1):
        await rows.add(number, line)
        if count % _LINES_AT_A_TIME == 0:
            await asyncio.sleep(0)
    rows.check()
    rows.check_whole()
    if not quiet:
        rows.tell()
    return rows.threads


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if text := line.strip():
                    yield number, text
    except OSError as error:
        raise UnreadableDatasetError(f"cannot read the data set {file}: {error.strerror}") from error
    except ValueError as error:  # a null byte in the path
        raise UnreadableDatasetError(f"cannot read the data set {str(file)!r}: {error}") from error


@dataclass
class _Rows:
    """What has been read of one file."""

    name: str
    formats: tuple[type[DatasetSampleType], ...]
    feedback_key: str | None
    threads: list[StringThread] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    without_feedback: int = 0
    is_internal: bool | None = None

    async def add(self, number: int, line: bytes) -> None:
        """Take in one line."""
        try:
            thread = await self._thread(_object(line))
        except InvalidRequestError as error:
            self.problems[number] = error.message
            return
        if thread is None:
            self.skipped.append(number)
            return
        self.threads.append(thread)
        if self.feedback_key is not None:
            has_feedback = isinstance(thread.metadata, dict) and thread.metadata.get(FEEDBACK) is not None
            self.without_feedback += not has_feedback

    async def _thread(self, row: dict[str, Any]) -> StringThread | None:
        """The conversation of a row; None for a row without one."""
        if self.is_internal is None:
            self.is_internal = self._decide(row)
        if self.is_internal:
            return await internal_thread(self._parse(row), self.feedback_key)
        if not is_external(row):
            return None
        thread = await external_thread(row, self._only_prompts, self.feedback_key)
        if self.formats == (DatasetSample,) and not any(thread.get_turn_weights()):
            roles = ", ".join(repr(turn.role) for turn in thread.get_turns())
            raise InvalidRequestError(
                f"there is no answer to learn: the roles are {roles}; an answer is a turn of the role 'assistant', or "
                "the row's 'completion'"
            )
        return thread

    @property
    def _only_prompts(self) -> bool:
        return self.formats == (DatasetPromptSample,)

    def _decide(self, row: dict[str, Any]) -> bool | None:
        """Whether the file is internal; None if this row does not tell."""
        try:
            parse_sample(row, self.formats)
        except InvalidRequestError:
            return False if is_external(row) else ("prompt" in row or None)
        return True

    def _parse(self, row: dict[str, Any]) -> DatasetSampleType:
        try:
            return parse_sample(row, self.formats)
        except InvalidRequestError as error:
            hint = "" if "metadata" in row else f"; rows without metadata are written {_EXAMPLE}"
            raise InvalidRequestError(error.message + hint) from error

    def check(self) -> None:
        """Complain of the lines that could not be read."""
        if self.problems:
            first = [f"line {number}: {problem}" for number, problem in self.problems.items()][:_SHOWN_LINES]
            rest = len(self.problems) - len(first)
            message = "; ".join(first) + (f"; and {rest} more lines" if rest else "")
            raise UnreadableDatasetError(f"{self.name} {message}", lines=list(self.problems))

    def check_whole(self) -> None:
        """Complain of a file that is of no use as a whole."""
        if not self.threads:
            why = f"none of its {len(self.skipped)} rows has a conversation" if self.skipped else "it is empty"
            raise UnreadableDatasetError(f"{self.name} has no usable row: {why}; write one object per line: {_EXAMPLE}")
        if self.without_feedback == len(self.threads) and not self._only_prompts:
            raise UnreadableDatasetError(f"no row of {self.name} has the feedback {self.feedback_key!r}")

    def tell(self) -> None:
        """Log which rows are of no use."""
        if self.without_feedback:
            log.warning("%s: %d rows lack the feedback %r", self.name, self.without_feedback, self.feedback_key)
        if self.skipped:
            lines = ", ".join(map(str, self.skipped[:_SHOWN_LINES])) + (", ..." * (len(self.skipped) > _SHOWN_LINES))
            log.warning("%s: skipped %d rows without a conversation: lines %s", self.name, len(self.skipped), lines)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8; numbers and nesting beyond all bounds
        raise InvalidRequestError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidRequestError(f"a row must be an object such as {_EXAMPLE}, not {row!r:.80}")
    return row
