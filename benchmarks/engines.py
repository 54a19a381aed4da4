"""The engines that can be measured, and what a caller may ask of each."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """A runner module and the precisions it takes, the default first."""

    module: str
    precisions: tuple[str, ...]


KINDS = {
    "harmonia": EngineKind(module="benchmarks.harmonia", precisions=("float32", "bfloat16", "int8", "fp8")),
    "llamacpp": EngineKind(module="benchmarks.peers.llamacpp", precisions=("stored",)),
    "transformers": EngineKind(module="benchmarks.peers.transformers", precisions=("float32", "bfloat16")),
    "vllm": EngineKind(module="benchmarks.peers.vllm", precisions=("float32", "bfloat16", "fp8")),
}


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine, ready to be started: what runs, on which weights, in which interpreter."""

    name: str
    model: Path
    precision: str
    threads: int
    python: Path

    @property
    def module(self) -> str:
        """The module that runs inside the interpreter."""
        return KINDS[self.name].module


def engine_spec(name: str, model: str, precision: str | None, python: str | None, threads: int) -> EngineSpec:
    """Check what the caller gave and fill in the defaults."""
    if name not in KINDS:
        raise BenchmarkError(f"engine {name!r} is unknown; choose one of {', '.join(KINDS)}")
    precisions = KINDS[name].precisions
    if precision is not None and precision not in precisions:
        raise BenchmarkError(f"precision {precision!r} is not one of {name}'s; choose one of {', '.join(precisions)}")
    if not Path(model).exists():
        raise BenchmarkError(f"model {model!r} does not exist here; give a model folder or a GGUF file")
    if name == "llamacpp" and not model.endswith(".gguf"):
        raise BenchmarkError(f"model {model!r} is not a GGUF file; llamacpp reads nothing else")
    interpreter = Path(python or sys.executable)
    if not os.access(interpreter, os.X_OK):
        raise BenchmarkError(f"interpreter {python!r} cannot be run; name the python of the engine's own environment")
    return EngineSpec(
        name=name,
        # The runner may start in another folder; a symlinked interpreter must stay one to keep its environment.
        model=Path(model).resolve(),
        precision=precision or precisions[0],
        threads=threads,
        python=interpreter.absolute(),
    )
