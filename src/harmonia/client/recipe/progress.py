"""Progress of a stage that has no samples to count."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from harmonia.client.recipe.notifiers import StageNotifier


class SimpleProgressNotifier:
    """`with SimpleProgressNotifier(stage):` reports 0 of 1, then 1 of 1 unless an exception leaves it; or `async`."""

    def __init__(self, job_notifier: StageNotifier, monitoring_link: str | None = None) -> None:
        self._stage = job_notifier
        self._link = monitoring_link

    def __enter__(self) -> Self:
        self._stage.report_progress(1, 0, self._link)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._stage.report_progress(1, 1, self._link)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
