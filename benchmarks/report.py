"""Records for machines (JSON lines, as they come) and for people (a table, at the end)."""

import json
import sys
from collections.abc import Iterable
from itertools import groupby
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.machine import Record

# Heading and field, in the order of the table.
SERVE_COLUMNS = {
    "n": "n",
    "in": "input",
    "out": "output",
    "wall s": "wall_s",
    "out tok/s": "out_tok_s",
    "in tok/s": "in_tok_s",
    "ITL ms": "itl_ms",
    "first s": "first_token_wall",
    "others": "other_cores",
}
COMPARE_COLUMNS = {
    "n": "n",
    "in": "input",
    "out": "output",
    "speed": "metric",
    "A": "a",
    "B": "b",
    "A/B": "ratio_median",
    "min": "ratio_min",
    "max": "ratio_max",
    "same": "agreement",
    "others": "other_cores",
}
HTTP_COLUMNS = {
    "n": "n",
    "in": "input",
    "out": "output",
    "HTTP": "http",
    "engine": "engine",
    "ratio": "ratio_median",
    "min": "ratio_min",
    "max": "ratio_max",
    "TTFT ms": "ttft_ms",
    "CPU us/token": "cpu_us",
    "others": "other_cores",
}
IDLE_COLUMNS = {
    "/health s": "health_s",
    "first token s": "ready_s",
    "cores": "cores",
    "of": "cores_of",
    "resident MB": "resident_mb",
    "others": "other_cores",
}
TRAIN_COLUMNS = {
    "peer": "arrangement",
    "A tok/s": "a",
    "B tok/s": "b",
    "A/B": "ratio_median",
    "min": "ratio_min",
    "max": "ratio_max",
    "peak MB": "peak_mb",
    "A/B memory": "memory_ratio",
    "losses differ": "loss_difference",
    "quoted": "is_quoted",
    "holds": "ok",
    "others": "other_cores",
}
INTERLEAVE_COLUMNS = {
    "phase": "phase",
    "ITL ms": "itl_ms",
    "p95": "itl_p95_ms",
    "worst": "itl_max_ms",
    "TTFT ms": "ttft_ms",
    "worst TTFT": "ttft_max_ms",
    "trained tok/s": "train_tok_s",
    "ratio": "ratio_median",
    "min": "ratio_min",
    "max": "ratio_max",
    "holds": "ok",
    "others": "other_cores",
}
AGREEMENT_COLUMNS = {
    "mode": "mode",
    "case": "case",
    "tokens": "num_tokens",
    "sampled - scored, max": "sampled_scored_max",
    "mean": "sampled_scored_mean",
    "sampled - loss, max": "sampled_loss_max",
    "mean ": "sampled_loss_mean",
    "scored - loss, max": "scored_loss_max",
    "mean  ": "scored_loss_mean",
    "holds": "ok",
}
DIVERGENCE_COLUMNS = {
    "mode": "mode",
    "requests at once": "sizes",
    "prompts": "num_prompts",
    "tokens": "num_output",
    "answers that part": "parted",
    "in 1000 tokens": "parted_per_1000_tokens",
    "tokens before": "shared_tokens",
    "holds": "ok",
}
SWITCH_COLUMNS = {
    "way": "way",
    "steps": "repeat",
    "first token ms": "first_token_ms",
    "worst": "first_token_max_ms",
    "holds": "ok",
    "others": "other_cores",
}
PERPLEXITY_COLUMNS = {
    "precision": "precision",
    "tokens": "num_tokens",
    "perplexity": "perplexity",
    "difference": "difference",
    "holds": "ok",
    "others": "other_cores",
}
MEMORY_COLUMNS = {
    "case": "case",
    "planned MiB": "planned_mib",
    "measured MiB": "measured_mib",
    "error": "error",
    "layers kept": "num_kept",
    "holds": "ok",
}
CONTROL_COLUMNS = {
    "database": "database",
    "users": "users",
    "projects": "projects",
    "checks": "checks",
    "p50 ms": "p50_ms",
    "p99": "p99_ms",
    "worst": "max_ms",
    "at most a second": "per_second",
    "holds": "ok",
}
OVERHEAD_COLUMNS = {
    "database": "database",
    "model": "model",
    "n": "n",
    "answers": "answers",
    "requests/s": "requests_s",
    "p50 ms": "p50_ms",
    "added ms": "added_ms",
    "first token": "added_first_ms",
    "ratio": "ratio_median",
    "min": "ratio_min",
    "max": "ratio_max",
    "CPU ms": "cpu_ms",
    "more CPU": "cpu_share",
    "holds": "ok",
    "others": "other_cores",
}
COLUMNS = {
    "serve": SERVE_COLUMNS,
    "compare": COMPARE_COLUMNS,
    "http": HTTP_COLUMNS,
    "idle": IDLE_COLUMNS,
    "train": TRAIN_COLUMNS,
    "interleave": INTERLEAVE_COLUMNS,
    "agreement": AGREEMENT_COLUMNS,
    "divergence": DIVERGENCE_COLUMNS,
    "switch": SWITCH_COLUMNS,
    "memory": MEMORY_COLUMNS,
    "perplexity": PERPLEXITY_COLUMNS,
    "control": CONTROL_COLUMNS,
    "overhead": OVERHEAD_COLUMNS,
}
TITLES = {
    "memory": "Peak memory, planned and measured",
    "control": "Permission checks that arrive at random times",
    "overhead": "Chats through the control plane, beside those through harmonia serve",
}


def emit(records: Iterable[Record], *, as_table: bool) -> None:
    """Write the records to standard output."""
    if as_table:
        for _, alike in groupby(records, key=lambda record: record["kind"]):
            _print_table(list(alike))
        return
    for record in records:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


def machine_line(machine: Record) -> str:
    """Say in one line what the figures were taken on."""
    return (
        f"{machine.get('gpu', machine['cpu'])}, {machine['cores']} cores, {machine['threads']} threads: product fp32"
        f" {machine['fp32_gflops']:g}, bf16 {machine['bf16_gflops']:g}, int8 {machine['int8_gflops']:g} GFLOP/s;"
        f" memory read {machine['read_gb_s']:g} GB/s; load before {machine['load_1m']:g}"
    )


def _print_table(records: list[Record]) -> None:
    console = Console()
    first = records[0]
    if first["kind"] == "machine":
        console.print(machine_line(first["machine"]), soft_wrap=True)
        return
    columns = COLUMNS[first["kind"]]
    table = Table(title=_title(first), caption=machine_line(first["machine"]))
    for heading in columns:
        table.add_column(heading)
    for record in records:
        table.add_row(*(_cell(record.get(field)) for field in columns.values()))
    console.print(table)


def _title(record: Record) -> str:
    match record["kind"]:
        case "serve":
            return _engine(record)
        case "compare":
            return f"A = {_engine(record['a'])}\nB = {_engine(record['b'])}"
        case "http":
            return f"HTTP = {_engine(record['http'])}\nengine = {_engine(record['engine'])}"
        case "idle":
            return f"harmonia serve, {record['model']} {record['precision']}, idle for {record['seconds']:g} s"
        case "train":
            a, b = record["a"], record["b"]
            return (
                f"LoRA of rank {record['rank']}, {record['model']} {record['precision']},"
                f" steps of {record['samples']} samples\n"
                f"A = {a['engine']} {a['version']}, {a['arrangement']}\nB = {b['engine']} {b['version']}"
            )
        case "perplexity":
            return f"Perplexity of {record['model']} on the reference of Python {record['python']}"
    return TITLES.get(record["kind"]) or f"{record['kind']}, {record['model']} {record['precision']}"


def _engine(record: Record) -> str:
    return (
        f"{record['engine']} {record['engine_version']}, {record['model']} {record['precision']},"
        f" ready in {record['ready_s']:g} s"
    )


def _cell(value: object) -> str:
    if isinstance(value, dict):
        if "values" in value:
            return _cell(median(value["values"]))
        return "\n".join(f"{name} {_cell(part)}" for name, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)
