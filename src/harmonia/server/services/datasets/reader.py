"""Reads the file of a data set block by block, in bounded memory, and gives it back in the form that recipes read."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.server.db.metrics import Metric
from harmonia.server.services.datasets.rows import COMPLETION, PREFERENCE, PROMPT, SCORE, Row, parse_row
from harmonia.server.services.metrics import BOOL, SCALAR, checked_value

MAX_LINE_BYTES = 64 << 20
MAX_METRICS = 1000
"""Different feedback keys of one file."""

_SHOWN_LINES = 10
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(slots=True)
class MetricUse:
    """What the rows say in one metric."""

    scores: int = 0
    comparisons: int = 0
    has_truths: bool = False
    """Some values were true or false."""
    has_numbers: bool = False
    """Some were neither 0 nor 1."""

    @property
    def kind(self) -> str:
        """BOOL or SCALAR, as the values suggest; comparisons alone suggest nothing."""
        return BOOL if self.has_truths else SCALAR


class DatasetReader:
    """Takes the bytes of one file in order: `feed` each block, then `finish`."""

    def __init__(self, dataset_id: uuid.UUID, created_at_ms: int, known: Mapping[str, Metric]) -> None:
        """Rows get ids that follow from the data set's, so that reading it again gives the same.

        known: the metrics that the project has, by key; their values must be such as they take.
        """
        self.records = 0
        self.lines = 0
        self.metrics: dict[str, MetricUse] = {}
        self._known = known
        self._dataset_id = dataset_id
        self._created_at_s = created_at_ms // 1000
        self._pieces: list[bytes] = []
        self._held = 0
        self._kinds: set[str] = set()
        self._problems: list[str] = []
        self._wrong = 0

    @property
    def kind(self) -> str:
        """What every row so far has; scores only need to be on some."""
        if PREFERENCE in self._kinds:
            return PREFERENCE
        if PROMPT in self._kinds or not self._kinds:
            return PROMPT
        return SCORE if SCORE in self._kinds else COMPLETION

    def feed(self, block: bytes) -> bytes:
        """The rows that end in this block, converted. InvalidRequestError: a line is too long to go on."""
        first, *others = block.split(b"\n")
        self._pieces.append(first)
        self._held += len(first)
        self._check_length()
        if not others:
            return b""
        lines = [b"".join(self._pieces), *others[:-1]]
        self._pieces, self._held = [others[-1]], len(others[-1])
        return self._converted(lines)

    def finish(self) -> bytes:
        """The last row, if no line end follows it. InvalidRequestError lists the lines that are wrong."""
        last = b"".join(self._pieces)
        rest = self._converted([last] if last else [])
        if self._problems:
            more = self._wrong - len(self._problems)
            text = "; ".join(self._problems) + (f"; and {more} more lines are wrong" if more else "")
            raise InvalidRequestError(text, field="file")
        if not self.records:
            raise InvalidRequestError("the file has no rows; write one JSON object per line", field="file")
        return rest

    def _check_length(self) -> None:
        if self._held > MAX_LINE_BYTES:
            raise InvalidRequestError(
                f"line {self.lines + 1} exceeds {MAX_LINE_BYTES} bytes; write one JSON object per line", field="file"
            )

    def _converted(self, lines: Iterable[bytes]) -> bytes:
        rows = []
        for line in lines:
            self.lines += 1
            text = self._trimmed(line)
            if not text:
                continue
            try:
                rows.append(self._sample(_object(text)))
            except InvalidRequestError as error:
                self._wrong += 1
                if len(self._problems) < _SHOWN_LINES:
                    self._problems.append(f"line {self.lines}: {error.message}")
        # Nothing is kept of a file with a wrong line, so converting its rows only serves to find further ones.
        return b"" if self._wrong else b"".join(rows)

    def _trimmed(self, line: bytes) -> bytes:
        if self.lines == 1:
            if line.startswith(_UTF16):
                raise InvalidRequestError("the file is in UTF-16; save it as UTF-8", field="file")
            line = line.removeprefix(_BOM)
        return line.strip()

    def _sample(self, raw: dict[str, object]) -> bytes:
        row = parse_row(raw)
        self._check_kind(row)
        self._count(row)
        self.records += 1
        metadata = row.sample["metadata"]
        if "id" not in metadata:
            metadata["id"] = str(uuid.uuid5(self._dataset_id, str(self.lines)))
            metadata["created_at"] = self._created_at_s
        try:
            return msgspec.json.encode(row.sample) + b"\n"
        except RecursionError as error:
            raise InvalidRequestError("the row is nested too deep; flatten its 'metadata'") from error

    def _check_kind(self, row: Row) -> None:
        is_preference = row.kind == PREFERENCE
        if self._kinds and is_preference != (self.kind == PREFERENCE):
            here, before = ("is", "are not") if is_preference else ("is not", "are")
            raise InvalidRequestError(
                f"the row {here} a preference, and the rows before it {before}; put preferences in a file of their own"
            )
        self._kinds.add(row.kind)

    def _count(self, row: Row) -> None:
        for key, value in row.scores.items():
            use = self._use(key)
            use.scores += 1
            if key in self._known:
                checked_value(self._known[key], value, key)
                continue
            use.has_truths |= isinstance(value, bool)
            use.has_numbers |= value not in (0, 1)
            if use.has_truths and use.has_numbers:
                raise InvalidRequestError(
                    f"the feedback {key!r} is {msgspec.json.encode(value).decode()} here, and some rows have true or "
                    "false for it while others have numbers; write one of the two"
                )
        if row.comparison is not None:
            self._use(row.comparison).comparisons += 1

    def _use(self, key: str) -> MetricUse:
        use = self.metrics.get(key)
        if use is None:
            if len(self.metrics) == MAX_METRICS:
                raise InvalidRequestError(
                    f"{key!r} is one more than {MAX_METRICS} different feedback keys; what differs from row to row "
                    "belongs in 'metadata'"
                )
            use = self.metrics[key] = MetricUse()
        return use


def _object(text: bytes) -> dict[str, object]:
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"not JSON: {error}, in {_start(text)}") from error
    if not isinstance(raw, dict):
        raise InvalidRequestError(f"a row must be a JSON object in braces, got {_start(text)}")
    return raw


def _start(text: bytes) -> str:
    shown = text[:60].decode("utf-8", "replace")
    return repr(shown) + ("..." if len(text) > 60 else "")
