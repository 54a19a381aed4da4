"""The rows beside anchors, limits and goals, and the files that keep them."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu.anchors import BY_KEY
from benchmarks.gpu.job import Rows

MACHINE = "machine"
RESULTS = Path(__file__).parents[1] / "results"
HEADINGS = ("work", "ours", "peer", "limit", "goal", "met")


def table(rows: Rows) -> str:
    """A Markdown table of every figure that has an anchor; failures below."""
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS)), *map(_line, _cells(rows))]
    failed = [f"- {key}: {error}" for key, error in rows.failures().items()]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])])


def write_results(rows: Rows) -> None:
    """`results/h100.md` with the table, and beside it the time lines, whichever these rows have."""
    RESULTS.mkdir(exist_ok=True)
    texts = rows.texts()
    taken = texts.pop(MACHINE, "")
    if any(rows.figure(key) is not None for key in BY_KEY):
        body = f"{table(rows)}\n\n## All figures\n\n{everything(rows)}"
        _write("h100.md", "# One GPU, beside anchors, limits and goals", taken, body)
    if texts:
        body = "\n\n".join(f"## {key}\n\n```\n{text}\n```" for key, text in sorted(texts.items()))
        _write("h100-timeline.md", "# Where the time of a step goes", taken, body)


def everything(rows: Rows) -> str:
    """Every figure of the newest row of each key."""
    newest = {str(row["key"]): row for row in rows.done if not {"text", "error"} & set(row)}
    lines = []
    for key, row in newest.items():
        figures = ", ".join(f"{name} {value:g}" for name, value in row.items() if isinstance(value, float | int))
        lines.append(f"- {key}: {figures}")
    return "\n".join(lines)


def _write(name: str, heading: str, taken: str, body: str) -> None:
    (RESULTS / name).write_text(f"{heading}\n\n{taken}\n\n{body}\n", encoding="utf-8")


def machine() -> str:
    """Date, card, versions and commit in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    head = ""
    if git := shutil.which("git"):
        asked = subprocess.run([git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        head = asked.stdout.strip()
    return (
        f"{datetime.now(tz=UTC):%Y-%m-%d}, {gpu}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Python {platform.python_version()}, commit {head or 'unknown'}"
    )


def _cells(rows: Rows) -> Iterator[list[str]]:
    for key, anchor in BY_KEY.items():
        value = rows.figure(key)
        if value is None:
            continue
        met = {True: "yes", False: "**no**", None: ""}[anchor.met(value)]
        yield [key, f"{_number(value)} {anchor.unit}", *map(_number, (anchor.peer, anchor.limit, anchor.goal)), met]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
