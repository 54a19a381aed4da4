"""Tables among metrics: `Table(["prompt", "score"]).add_row(["hi", 0.5])`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, Self

from harmonia.errors import InvalidRequestError


class Table:
    """Rows under headers. Metric loggers take one as the value of a metric; every `add_` returns the table itself.

    `headers` and `rows` hold what was added; `export` gives it as text.
    """

    def __init__(self, initial_headers: Sequence[str] = ()) -> None:
        self.headers: list[str] = list(initial_headers)
        self.rows: list[list[Any]] = []

    def add_column(self, header: str, column: Sequence[Any]) -> Self:
        """Append a column of one cell per row; the first column of an empty table makes the rows."""
        cells = list(column)
        if not self.headers:
            self.rows = [[] for _ in cells]
        if len(cells) != len(self.rows):
            raise InvalidRequestError(f"column {header!r} has {len(cells)} cells; the table has {len(self.rows)} rows")
        self.headers.append(header)
        for row, cell in zip(self.rows, cells, strict=True):
            row.append(cell)
        return self

    def add_row(self, row: Sequence[Any]) -> Self:
        """Append a row of one cell per header."""
        cells = list(row)
        if len(cells) != len(self.headers):
            raise InvalidRequestError(
                f"a row has {len(cells)} cells; the table has {len(self.headers)} headers: {', '.join(self.headers)}"
            )
        self.rows.append(cells)
        return self

    def add_rows(self, rows: Iterable[Sequence[Any]]) -> Self:
        """Append rows of one cell per header each."""
        for row in rows:
            self.add_row(row)
        return self

    def export(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows, every cell as text."""
        return list(self.headers), [[str(cell) for cell in row] for row in self.rows]

    def to_html_table(self) -> str:
        """An HTML `<table>`; what cells say is escaped."""
        headers, rows = self.export()
        lines = [_html_row("th", headers), *(_html_row("td", row) for row in rows)]
        return "\n".join(["<table>", *lines, "</table>"])

    def __repr__(self) -> str:
        return f"Table(headers={self.headers}, {len(self.rows)} rows)"


def _html_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
