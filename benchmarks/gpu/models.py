"""Models of random weights, made on the device: the public shapes of Qwen3, no files."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from benchmarks.driver import Driver, Pending
from harmonia.config import EngineConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.cached import CachedDecoder
from harmonia.engine.engine import Engine
from harmonia.engine.instances import Instances, resolve_spawn
from harmonia.engine.loading import Load, PendingSpawn
from harmonia.layers.linear import WeightFormat
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from harmonia.models.hf_config import read_config
from harmonia.protocol.instances import SpawnSpec

SPREAD = 0.02
_CHUNK_ITEMS = 1 << 26
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "vocab_size": 151_936,
}
SHAPES: dict[str, dict[str, object]] = {
    "8b": _QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "0.6b": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    # To see that everything runs.
    "tiny": _QWEN3
    | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}


@contextmanager
def opened(
    shape: str, name: str, spec: SpawnSpec, config: EngineConfig, *, draft: str | None = None
) -> Iterator[Driver]:
    """A runtime with one instance on a backbone of random weights; `spec.path` is filled in. Ends with memory free.

    draft: the shape of a draft, random as well; `spec.draft` is filled in.
    """
    release()
    with TemporaryDirectory() as folder:
        paths = {"path": _written(shape, Path(folder, "target"))}
        if draft is not None:
            paths["draft"] = _written(draft, Path(folder, "draft"))
        driver = Driver(config)
        try:
            _open(driver, name, msgspec.structs.replace(spec, **paths), config)
            gc.collect()
            gc.freeze()  # as the worker's process does
            yield driver
        finally:
            gc.unfreeze()
            driver.__dict__.clear()
            release()


def _written(shape: str, folder: Path) -> str:
    """A folder with the configuration of a model, and nothing else."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
    return str(folder.resolve())


def path_of(driver: Driver, name: str) -> str:
    """What to spawn further instances from."""
    return driver.runtime._lanes.of(name).path


def release() -> None:
    """Give back what nobody holds any longer."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open(driver: Driver, name: str, spec: SpawnSpec, config: EngineConfig) -> None:
    """What `Runtime.spawn` does, with weights that are drawn where it reads them from files."""
    runtime, answer = driver.runtime, Pending()
    base, need = resolve_spawn(name, spec, config)
    model = read_config(Path(base.path))
    draft_model = None if base.draft is None else read_config(Path(base.draft))
    plan = runtime._ledger.plan_new(Path(base.path), model, spec, need, draft_model)
    plan.memory.require()
    key = f"{base.path}#{name}" if need.full else base.path
    draft = None if draft_model is None else CachedDecoder(random_decoder(draft_model, plan.fmt), plan)
    engine = Engine(Backbone(key, random_decoder(model, plan.fmt), plan, draft=draft))
    load = Load(base, plan, is_shared=not need.full)
    load.waiting.append(PendingSpawn(name, spec, need, answer, lambda share: None))
    runtime._open_lane(load, Instances(engine, base.path))
    answer.result()


def random_decoder(model: ModelConfig, fmt: WeightFormat) -> Decoder:
    """Matrices from a normal distribution, norms of 1, biases of 0."""
    decoder = build_decoder(model, fmt)
    generator = torch.Generator(fmt.device).manual_seed(0)
    with torch.inference_mode(mode=False), torch.no_grad():
        for parameter in decoder.parameters():
            if len(parameter.shape) == 1:
                value = float(parameter.name.endswith("norm.weight"))
                parameter.fill(0, torch.full(parameter.shape, value, dtype=fmt.dtype, device=fmt.device))
                continue
            step = max(1, _CHUNK_ITEMS // math.prod(parameter.shape[1:]))
            for start in range(0, parameter.shape[0], step):
                size = min(step, parameter.shape[0] - start), *parameter.shape[1:]
                rows = torch.empty(size, dtype=fmt.dtype, device=fmt.device)
                parameter.fill(start, rows.normal_(0.0, SPREAD, generator=generator))
    decoder.pack()
    return decoder
