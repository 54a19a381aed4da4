"""`harmonia plan`: what a model needs, before anything is loaded."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from harmonia.cli.app import app
from harmonia.cli.options import (
    DEFAULTS,
    DeviceOption,
    Draft,
    Invariant,
    KvCacheLen,
    MaxAdapters,
    MaxSeqLen,
    ModelPath,
    NumDraftSteps,
    PrecisionOption,
    Registry,
    engine_config,
    located,
    paired,
)
from harmonia.cli.reporting import reported
from harmonia.cli.tables import print_plan
from harmonia.config.engine import Precision
from harmonia.errors import InvalidRequestError
from harmonia.models.drafts import Pairing
from harmonia.protocol.instances import SpawnSpec

DEFAULT_RANK = 16


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
    FP8 = "fp8"


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
    Dtype.FP8: "fp8",
}


Train = Annotated[bool, typer.Option("--train", help="Plan for training beside serving: an adapter, unless --full.")]
MaxBatchSize = Annotated[
    int | None, typer.Option(min=1, help="Tokens of one micro-batch, and of the longest sample; with --train.")
]
AdapterRank = Annotated[int, typer.Option(min=1, help="Rank of the adapter that is trained.")]
Targets = Annotated[
    str | None, typer.Option(help="Projections that it changes, such as q_proj,v_proj; every one by default.")
]
Full = Annotated[bool, typer.Option("--full", help="Train every weight instead of an adapter.")]


@app.command()
def plan(
    model: ModelPath,
    kv_cache_len: KvCacheLen = None,
    max_seq_len: MaxSeqLen = None,
    precision: PrecisionOption = "auto",
    invariant: Invariant = False,
    dtype: Annotated[Dtype | None, typer.Option(help="Another way to say --precision.")] = None,
    device: DeviceOption = "auto",
    train: Train = False,
    max_batch_size: MaxBatchSize = None,
    adapter_rank: AdapterRank = DEFAULT_RANK,
    targets: Targets = None,
    full: Full = False,
    max_adapters: MaxAdapters = DEFAULTS.max_adapters,
    draft: Draft = None,
    draft_steps: NumDraftSteps = None,
    registry: Registry = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the bytes that serving or training MODEL takes, and whether this machine has them.

    Nothing is loaded: only the headers of the files are read. The exit code is 1 when it does not fit.

    [bold]Examples[/bold]

      harmonia plan ./SmolLM2-135M-Instruct.Q4_1.gguf

      harmonia plan ./Qwen3-8B --kv-cache-len 200000 --dtype bf16 --device cuda

      harmonia plan model_registry://qwen3-8b_accelerated --device cuda

      harmonia plan ./Qwen3-8B --train --max-batch-size 8192 --adapter-rank 32

      harmonia plan ./Qwen3-8B --train --max-batch-size 4096 --full

      harmonia plan ./Qwen3-8B --json | jq .total_bytes
    """
    # The planner belongs to the compute half: importing it loads torch, which no other command needs.
    from harmonia.engine.instances import resolve_spawn
    from harmonia.engine.memory import plan_memory
    from harmonia.engine.needs import training_need

    chosen = precision if dtype is None else _PRECISIONS[dtype]
    config = engine_config(kv_cache_len, max_seq_len, chosen, device, max_adapters=max_adapters)
    config = msgspec.structs.replace(config, invariant=invariant)
    with reported():
        check_training(train, max_batch_size, full, targets)
        names = tuple(name.strip() for name in targets.split(",")) if targets else ()
        needs = [] if max_batch_size is None else [training_need(max_batch_size, 0 if full else adapter_rank, names)]
        pairing = Pairing(located(model, registry))  # what is trained is the model itself, though it be a draft
        if draft is not None or not train:
            pairing = paired(model, draft, draft_steps, registry)
        served = SpawnSpec(path=str(pairing.model), draft=pairing.source, num_draft_steps=pairing.num_steps)
        base, need = resolve_spawn("serving", served, config)
        result = plan_memory(base.path, config, [*needs, need], draft_path=base.draft)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    else:
        print_plan(Console(), result.to_dict())
    raise typer.Exit(0 if result.fits else 1)


def check_training(train: bool, max_batch_size: int | None, full: bool, targets: str | None) -> None:
    """Raise `InvalidRequestError` for options of training that contradict each other."""
    if train and max_batch_size is None:
        raise InvalidRequestError(
            "--train needs --max-batch-size: the tokens of one micro-batch, such as 4096", field="max_batch_size"
        )
    if not train and (max_batch_size is not None or full or targets):
        raise InvalidRequestError("--max-batch-size, --full and --targets are about training: add --train")
    if full and targets:
        raise InvalidRequestError("--targets are those of an adapter, and --full trains every weight: leave out one")
