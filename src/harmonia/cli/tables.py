"""Tables and errors as people read them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.errors import HarmoniaError

_GIB = 1024**3
_MIB = 1024**2
_KIB = 1024


def size(num_bytes: int) -> str:
    """Bytes in the unit that reads best."""
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name}"
    return f"{num_bytes} B"


def print_plan(console: Console, plan: Mapping[str, object]) -> None:
    """A memory plan, as `MemoryPlan.to_dict()` gives it, and the levers when it does not fit."""
    precision = f"{plan.get('precision', '?')}{', invariant' if plan.get('invariant') else ''}"
    table = Table(title=f"{plan.get('model', 'model')} on {plan.get('device', '?')}, {precision}")
    for name, justify in (("what", "left"), ("bytes", "right"), ("note", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for row in _sequence(plan.get("rows")):
        if isinstance(row, Mapping):
            table.add_row(str(row.get("name", "")), size(_int(row.get("num_bytes"))), str(row.get("note", "")))
    table.add_section()
    table.add_row("total", size(_int(plan.get("total_bytes"))))
    table.add_row("available", size(_int(plan.get("available_bytes"))))
    console.print(table)
    length = f"cache of {_int(plan.get('kv_cache_len'))} tokens, sequences of up to {_int(plan.get('max_seq_len'))}"
    if plan.get("max_batch_size"):
        console.print(_training_line(plan))
    if plan.get("fits"):
        console.print(f"[green]It fits[/green]: {length}.")
        return
    console.print(f"[red]It does not fit[/red]: {length}.")
    for lever in _sequence(plan.get("levers")):
        console.print(f"  what would help: {escape(str(lever))}")


def _training_line(plan: Mapping[str, object]) -> str:
    """How much training computes twice to fit."""
    kept, layers = _int(plan.get("num_kept")), _int(plan.get("num_layers"))
    line = f"Training keeps the activations of {kept} of {layers} layers"
    if kept < layers:
        return f"{line} and recomputes the others."
    lean = layers - _int(plan.get("num_whole"))
    return f"{line}: {f'{lean} compute norms and gates again' if lean else 'nothing is recomputed'}."


def print_error(console: Console, error: HarmoniaError) -> None:
    """An error, with its table of bytes if it brings one."""
    if "rows" in error.details:
        print_plan(console, error.details)
    console.print(f"[red]error[/red] ({error.code}): {escape(error.message)}", soft_wrap=True)


def _sequence(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
