"""`harmonia plan`: what a model needs, before anything is loaded."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from harmonia.cli.app import app
from harmonia.cli.options import (
    DeviceOption,
    KvCacheLen,
    MaxSeqLen,
    ModelPath,
    PrecisionOption,
    engine_config,
)
from harmonia.cli.tables import print_error, print_plan
from harmonia.config.engine import Precision
from harmonia.errors import HarmoniaError


class Dtype(StrEnum):
    """Short names of precisions."""

    F32 = "f32"
    FP32 = "fp32"
    FLOAT32 = "float32"
    BF16 = "bf16"
    BFLOAT16 = "bfloat16"
    F16 = "f16"
    FP16 = "fp16"
    FLOAT16 = "float16"
    INT8 = "int8"


_PRECISIONS: dict[Dtype, Precision] = {
    Dtype.F32: "float32",
    Dtype.FP32: "float32",
    Dtype.FLOAT32: "float32",
    Dtype.BF16: "bfloat16",
    Dtype.BFLOAT16: "bfloat16",
    Dtype.F16: "float16",
    Dtype.FP16: "float16",
    Dtype.FLOAT16: "float16",
    Dtype.INT8: "int8",
}


@app.command()
def plan(
    model: ModelPath,
    kv_cache_len: KvCacheLen = None,
    max_seq_len: MaxSeqLen = None,
    precision: PrecisionOption = "auto",
    dtype: Annotated[Dtype | None, typer.Option(help="Another way to say --precision.")] = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the bytes that serving MODEL takes, and whether this machine has them.

    Nothing is loaded: only the headers of the files are read. The exit code is 1 when it does not fit.

    [bold]Examples[/bold]

      harmonia plan ./SmolLM2-135M-Instruct.Q4_1.gguf

      harmonia plan ./Qwen3-8B --kv-cache-len 200000 --dtype bf16 --device cuda

      harmonia plan ./Qwen3-8B --json | jq .total_bytes
    """
    # The planner belongs to the compute half: importing it loads torch, which no other command needs.
    from harmonia.engine.memory import plan_memory

    console = Console()
    config = engine_config(kv_cache_len, max_seq_len, precision if dtype is None else _PRECISIONS[dtype], device)
    try:
        result = plan_memory(str(model), config)
    except HarmoniaError as error:
        print_error(Console(stderr=True), error)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    else:
        print_plan(console, result.to_dict())
    if not result.fits:
        raise typer.Exit(1)
