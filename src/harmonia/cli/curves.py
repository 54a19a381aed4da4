"""Curves of a training run: in the terminal and as a PNG."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

Points = Sequence[tuple[float, float]]
Series = Mapping[str, Points]

PER_TOKEN = " per token"

_VALIDATION = re.compile(r"(^|[^a-z])(e?val(?!ue)[a-z]*)([^a-z]|$)", re.IGNORECASE)

_COLOURS = (6, 3, 2, 5, 1, 4)  # of the terminal's palette, which plotext and rich number alike
_WIDEST, _HEIGHT, _TICKS = 100, 16, 5
_PNG_INCHES, _PNG_DPI = (8.0, 4.5), 120


def is_validation(name: str) -> bool:
    """Whether a metric is the loss of a validation, such as `val/loss`; that of a value model is none."""
    prefix, _, last = name.rpartition("/")
    return last == "loss" and _VALIDATION.search(prefix) is not None


def loss_of_step(metrics: Mapping[str, Any]) -> tuple[float | None, str]:
    """The loss that an `optim_step` told, and its unit: per token, as validations have it, unless it is one of whole
    samples or pairs, or their number is not known."""
    loss, samples, tokens = (metrics.get(name) for name in ("loss", "num_samples", "num_tokens"))
    if not isinstance(loss, int | float):
        return None, ""
    if not samples or not tokens or not metrics.get("per_token", 1):
        return float(loss), ""
    return loss * samples / tokens, PER_TOKEN


def print_curve(console: Console, series: Series, title: str) -> None:
    """Draw named curves, each a list of (step, value), with a legend above; says so when there is nothing to draw.

    Values that are not finite leave a gap in the PNG and are left out here.
    """
    drawn = {name: _finite(points) for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        console.print(Text(f"{title}: no values to draw", style="dim"))
        return
    console.print(_legend(title, drawn))
    console.print(Text.from_ansi(_chart(drawn, min(console.width, _WIDEST))))


def write_png(path: Path, series: Series, title: str) -> None:
    """Save the same curves as a PNG of 960 x 540 pixels; its folder is made when missing."""
    from matplotlib.figure import Figure  # slow to load, and only the end of a run needs it

    figure = Figure(figsize=_PNG_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, marker="." if len(points) < 50 else "", label=name)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if any(series.values()):
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=_PNG_DPI)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _legend(title: str, series: Series) -> Text:
    legend = Text(title, style="bold")
    for index, name in enumerate(series):
        legend.append("   ━━ ", style=f"color({_colour(index)})").append(name, style="not bold")
    return legend


def _chart(series: Series, width: int) -> str:
    import plotext  # type: ignore[import-untyped]  # keeps one figure for the process, and is slow to load

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")  # the terminal's own background and text
    figure.plot_size(width, _HEIGHT)
    figure.legend(False)
    for index, points in enumerate(series.values()):
        marker = plotext.marker("braille", _colour(index))
        figure.draw(figure.signal([x for x, _ in points], [y for _, y in points], marker=marker).lines())
    figure.ruler("x").ticks(_ticks(series))
    return str(figure.build()).rstrip("\n")


def _ticks(series: Series) -> list[float]:
    """A few steps from the first to the last; whole numbers where steps are."""
    xs = sorted({x for points in series.values() for x, _ in points})
    if len(xs) <= _TICKS:
        return xs
    return [xs[round(place * (len(xs) - 1) / (_TICKS - 1))] for place in range(_TICKS)]


def _colour(index: int) -> int:
    return _COLOURS[index % len(_COLOURS)]
