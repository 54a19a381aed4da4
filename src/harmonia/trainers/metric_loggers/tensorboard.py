"""Metrics for TensorBoard, through tensorboardX."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonia.trainers.metric_loggers.base import Logger, Metric, by_kind, file_name, is_installed, load

_PAGE = "<!doctype html>\n<meta charset='utf-8'>\n<title>{title}</title>\n<h1>{title}</h1>\n{body}\n"
_TABLES = "tables"


class TBMetricsLogger(Logger):
    """Writes an event file into `logging_dir/run_name`: numbers as scalars, texts as texts, one step per record.

    Tables become HTML pages in its folder `tables`, listed by an `index.html`. Needs `pip install
    harmonia[tensorboard]`; InvalidRequestError without it.
    """

    def __init__(self, run_name: str, logging_dir: str, monitoring_link: str | None = None) -> None:
        self._library = load("tensorboardX", extra="tensorboard")
        self._folder = Path(logging_dir) / run_name
        self._link = monitoring_link
        self._step = 0
        self._file: Any = None

    @staticmethod
    def is_available() -> bool:
        """Whether tensorboardX is installed."""
        return is_installed("tensorboardX")

    def __call__(self, logs: Mapping[str, Metric]) -> None:
        """Write one record, all of it before this returns: TensorBoard shows it at its next look."""
        record, summary = by_kind(logs), self._library.summary
        self._add(*(summary.scalar(key, number) for key, number in record.numbers.items()))
        self._add(*(summary.text(key, text) for key, text in record.texts.items()))
        for key, table in record.tables.items():
            self._write_page(
                f"{file_name(key)}-{self._step:06d}.html", f"{key}, step {self._step}", table.to_html_table()
            )
        if record.tables:
            self.create_index_page(str(self._folder / _TABLES))
        self._step += 1

    def log_config(self, config: dict[str, Any]) -> None:
        """Write it as a text named config."""
        text = json.dumps(config, indent=2, default=str).replace("\n", "\n    ")
        self._add(self._library.summary.text("config", f"    {text}"))

    def create_index_page(self, root_dir: str, sample_files: list[str] | None = None) -> None:
        """Write `index.html` into a folder, with links to the given files in it, by default to all its pages."""
        root = Path(root_dir)
        pages = sorted(page.name for page in root.glob("*.html") if page.name != "index.html")
        links = (
            f"<li><a href='{html.escape(page, quote=True)}'>{html.escape(page)}</a></li>"
            for page in (pages if sample_files is None else sample_files)
        )
        self._write(root / "index.html", "Tables", "<ul>\n" + "\n".join(links) + "\n</ul>")

    def get_state(self) -> dict[str, Any]:
        """How many records there were."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on at that step; what an earlier run wrote from there on disappears from the curves."""
        self.close()
        self._step = int(state.get("step", 0))

    def close(self) -> None:
        """End the event file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def training_monitoring_link(self) -> str | None:
        """Where TensorBoard runs, as far as it was told."""
        return self._link

    def _add(self, *summaries: Any) -> None:
        """Append to the event file. Not through the library's SummaryWriter: that writes later, in a thread."""
        if self._file is None:
            self._open()
        for summary in summaries:
            self._file.write_event(self._event(step=self._step, wall_time=time.time(), summary=summary))
        self._file.flush()

    def _open(self) -> None:
        """At the first use: a restored state says from which step on older events do not count."""
        self._folder.mkdir(parents=True, exist_ok=True)
        writer = self._library.event_file_writer.EventsWriter
        self._file = writer(str(self._folder / "events"), filename_suffix=f".{time.time_ns()}")
        if self._step:
            start = self._library.proto.event_pb2.SessionLog(status="START")
            self._file.write_event(self._event(step=self._step, wall_time=time.time(), session_log=start))

    def _event(self, **fields: Any) -> Any:
        return self._library.proto.event_pb2.Event(**fields)

    def _write_page(self, name: str, title: str, body: str) -> None:
        folder = self._folder / _TABLES
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder / name, title, body)

    @staticmethod
    def _write(path: Path, title: str, body: str) -> None:
        path.write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
