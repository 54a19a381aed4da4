"""A running job as people watch it: bars and numbers that move in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harmonia.cli.curves import is_validation, loss_of_step
from harmonia.client.table import Table as LoggedTable
from harmonia.trainers.metric_loggers.stdout import first_rows

DROPPED = "num_dropped_samples"
_LOADING = "loading"
_LINE_EVERY_S = 1.0
_REFRESHES_PER_S = 4
_BAR_WIDTH = 32
_RATE_OVER_STEPS = 10


@dataclass
class Stage:
    """One stage of the job."""

    processed: int = 0
    total: int = 0
    started_s: float | None = None
    started_with: int = 0
    """Processed before that, by an earlier run."""
    changed_s: float = 0.0

    @property
    def remaining_s(self) -> float | None:
        """At the present pace; None when nothing tells."""
        if self.started_s is None or not self.started_with < self.processed < self.total:
            return None
        pace_s = (self.changed_s - self.started_s) / (self.processed - self.started_with)
        return pace_s * (self.total - self.processed)

    def take(self, processed: int, total: int, now_s: float) -> None:
        """Note how far it is."""
        if (self.processed, self.total) == (processed, total):
            return
        if self.started_s is None or processed < self.processed:
            self.started_s, self.started_with = now_s, processed
        self.processed, self.total, self.changed_s = processed, total, now_s


@dataclass
class Training:
    """What the steps of one model in training tell."""

    steps: int = 0
    """Done, by earlier runs of the job as well."""
    loss: float | None = None
    unit: str = ""
    """Of the loss, as it is written after the number."""
    grad_norm: float | None = None
    agreement: float | None = None
    """With a teacher, where there is one."""
    num_tokens: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RATE_OVER_STEPS + 1))
    """Time and tokens of the last steps."""

    @property
    def tokens_per_s(self) -> float | None:
        """Over the last steps, prompts included; None before the second step."""
        if len(self.recent) < 2:
            return None
        tokens = sum(tokens for _, tokens in list(self.recent)[1:])
        return tokens / max(self.recent[-1][0] - self.recent[0][0], 1e-9)

    def take(self, metrics: Mapping[str, float], now_s: float) -> None:
        """Note one more step, given what `optim_step` returned and how many steps are done."""
        self.steps = int(metrics.get("optim_step", self.steps + 1))
        self.loss, self.unit = loss_of_step(metrics)
        self.grad_norm, self.agreement = metrics.get("grad_norm"), metrics.get("agreement")
        tokens = int(metrics.get("num_input_tokens", metrics.get("num_tokens", 0)))
        self.num_tokens += tokens
        self.recent.append((now_s, tokens))

    def __str__(self) -> str:
        parts = [f"step {self.steps}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}{self.unit}")
        if self.agreement is not None:
            parts.append(f"agreement {self.agreement:.2f}")
        if self.grad_norm is not None:
            parts.append(f"grad norm {self.grad_norm:.3g}")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        return ", ".join(parts)


class Display:
    """Shows a job while it is entered as a context. Everything may be called from any thread."""

    def __init__(self, console: Console, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        """console: where to show it; when that is no terminal, a line a second at most, and only if something moved."""
        self.stages: dict[str, Stage] = {}
        self.trainings: dict[str, Training] = {}
        self.validations: dict[str, float] = {}
        """The newest loss of each validation that the recipe logs."""
        self.dropped = 0
        self.phase = ""
        self._console = console
        self._title = title
        self._clock = clock
        self._started_s = clock()
        self._shown = ""
        self._ended = threading.Event()
        self._open = contextlib.ExitStack()
        self._lock = threading.RLock()

    @property
    def elapsed(self) -> str:
        """Minutes and seconds since it was made."""
        return _minutes(self._clock() - self._started_s)

    @property
    def dropped_samples(self) -> str:
        """How many were dropped, in words."""
        return f"{self.dropped} sample{'' if self.dropped == 1 else 's'} dropped"

    # ------------------------------------------------------------------------------------------------- what happened

    def begin(self, phase: str) -> None:
        """Name what the job is doing; shown until the next name, or an empty one."""
        self.phase = phase

    def spawn(self, model: str, share: float) -> None:
        """Note how much of a model is made, 0 to 1."""
        if not self.phase or self.phase.startswith(_LOADING):
            self.begin(f"{_LOADING} {model} {share * 100:.0f} %" if share < 1 else "")

    def stage(self, name: str, processed: int, total: int) -> None:
        """Note the progress of a stage."""
        with self._lock:
            self.stages.setdefault(name, Stage()).take(processed, total, self._clock())

    def step(self, model: str, metrics: Mapping[str, float]) -> None:
        """Note a step of the optimizer."""
        with self._lock:
            self.trainings.setdefault(model, Training()).take(metrics, self._clock())

    def record(self, metrics: Mapping[str, object]) -> None:
        """Note a record of metrics that the recipe logged, and print its tables."""
        with self._lock:
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            self.dropped = int(numbers.get(DROPPED, self.dropped))
            self.validations |= {name: value for name, value in numbers.items() if is_validation(name)}
        # Without the lock, which the moving part wants while the console prints.
        for name, table in metrics.items():
            if isinstance(table, LoggedTable):
                self._console.print(first_rows(name, table))

    # ------------------------------------------------------------------------------------------------------- showing

    def __enter__(self) -> Display:
        """Begin to show. In a terminal, what others print goes above the moving part."""
        if self._console.is_terminal:
            self._open.enter_context(_printing_above(self._console))
            self._open.enter_context(
                Live(
                    console=self._console,
                    get_renderable=self._render,
                    refresh_per_second=_REFRESHES_PER_S,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
            )
        else:
            ticker = threading.Thread(target=self._tick, daemon=True)
            ticker.start()
            self._open.callback(ticker.join)
            self._open.callback(self._ended.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state and end."""
        self.phase = ""
        self._open.close()

    def show_cursor(self) -> None:
        """For an end without leaving the context: the terminal's cursor is hidden while something moves."""
        self._console.show_cursor(True)

    def _tick(self) -> None:
        while not self._ended.wait(_LINE_EVERY_S):
            self._print_line()
        self._print_line()

    def _print_line(self) -> None:
        line = self.line()
        if line and line != self._shown:
            self._shown = line
            self._console.print(Text(f"{self.elapsed}  {line}"), soft_wrap=True)

    def line(self) -> str:
        """The present state in one line."""
        with self._lock:
            stages = [f"{name} {at.processed}/{at.total}" for name, at in self.stages.items() if at.processed]
            trainings = [f"{name}: {training}" for name, training in self.trainings.items()]
            trainings += [f"{name} {loss:.4g}" for name, loss in self.validations.items()]
        parts = (stages[-1:] or ([self.phase] if self.phase else [])) + trainings
        if self.dropped:
            parts.append(self.dropped_samples)
        return "  ".join(parts)

    def _render(self) -> RenderableType:
        head = f"[bold]{escape(self._title)}[/bold] [dim]{self.elapsed}[/dim] {escape(self.phase)}"
        rows: list[RenderableType] = [Spinner("dots", head) if self.phase else Text.from_markup(head)]
        with self._lock:
            if self.stages:
                rows.append(self._bars())
            for name, training in self.trainings.items():
                rows.append(Text.from_markup(f"[cyan]{escape(name)}[/cyan] {escape(str(training))}"))
            rows += [Text(f"{name} {loss:.4g}") for name, loss in self.validations.items()]
        if self.dropped:
            rows.append(Text(self.dropped_samples, style="yellow"))
        return Group(*rows)

    def _bars(self) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        for name, stage in self.stages.items():
            remaining = "" if stage.remaining_s is None else f"{_minutes(stage.remaining_s)} left"
            grid.add_row(
                Text(name),
                ProgressBar(total=max(stage.total, 1), completed=stage.processed, width=_BAR_WIDTH),
                f"{stage.processed}/{stage.total}" if stage.total else "",
                f"[dim]{remaining}[/dim]",
            )
        return grid


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


# ------------------------------------------------------------------------------------------------- prints of others


@contextlib.contextmanager
def _printing_above(console: Console) -> Iterator[None]:
    """Send what is printed through the console, which keeps its moving part below; files and pipes stay as they are."""
    console.file = console.file  # bind it to the stream of now
    with contextlib.ExitStack() as restoring:
        # Not rich's own redirection: other consoles of this process see through that.
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty():
                above = _Above(console, stream)
                setattr(sys, name, above)
                restoring.callback(setattr, sys, name, stream)
                restoring.callback(above.end)
        yield


class _Above(io.TextIOBase):
    """A standard stream whose lines are printed by a console."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console = console
        self._stream = stream
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            # Only the last of what a carriage return would have overwritten.
            self._console.print(Text.from_ansi(line.rstrip("\r").rpartition("\r")[2]), soft_wrap=True)
        return len(text)

    def end(self) -> None:
        """Print what was begun and never ended."""
        if self._begun:
            self.write("\n")
