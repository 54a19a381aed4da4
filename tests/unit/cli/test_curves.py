"""Curves in the terminal and as a PNG."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from harmonia.cli.curves import Series, print_curve, write_png

FALLING = {
    "training": [(float(step), 3 * math.exp(-step / 20)) for step in range(1, 61)],
    "validation": [(20.0, 1.4), (40.0, 0.6), (60.0, 0.3)],
}


def drawn(series: Series, width: int = 80) -> list[str]:
    stream = io.StringIO()
    print_curve(Console(file=stream, width=width), series, "loss")
    return stream.getvalue().splitlines()


def test_the_chart_has_a_legend_axes_and_a_line_that_falls() -> None:
    legend, *chart = drawn(FALLING)
    assert "loss" in legend and "training" in legend and "validation" in legend
    assert chart[-1].split() == ["1", "16", "31", "45", "60"]
    assert all(len(line) <= 80 for line in chart)
    places = [line.find(next((char for char in line if "⠀" < char <= "⣿"), "\0")) for line in chart]
    tops = [place for place in places if place >= 0]
    assert len(tops) > 5 and tops == sorted(tops)


@pytest.mark.parametrize("series", [{}, {"loss": []}, {"loss": [(1.0, math.nan)]}])
def test_nothing_to_draw_is_said(series: Series) -> None:
    assert drawn(series) == ["loss: no values to draw"]


def test_odd_curves_are_drawn() -> None:
    assert (
        len(drawn({"one": [(1.0, 2.0)], "flat": [(1.0, 2.0), (2.0, 2.0)], "gap": [(1.0, math.inf), (2.0, 0.0)]})) > 10
    )


@pytest.mark.parametrize("series", [FALLING, {}, {"loss": [(1.0, math.nan), (2.0, 1.0)]}])
def test_the_png_is_one(series: Series, tmp_path: Path) -> None:
    file = tmp_path / "new" / "loss.png"
    write_png(file, series, "loss")
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG") and int.from_bytes(head[16:20], "big") == 960
