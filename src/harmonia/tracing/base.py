"""What a span is to those who make one."""

from __future__ import annotations

from collections.abc import Mapping

Attributes = Mapping[str, str | int | float | bool]


class Span:
    """Something that takes time, as a `with` block. This one is told to nobody: traces are off."""

    def note(self, attributes: Attributes) -> None:
        """Tell more of it."""

    def rename(self, name: str) -> None:
        """Call it something else than it was begun as."""

    def fail(self, reason: str) -> None:
        """It went wrong. reason: a short name of what; never a text that callers wrote."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...


SILENT = Span()
