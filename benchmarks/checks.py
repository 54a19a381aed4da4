"""What commands ask of their options."""

from pathlib import Path

from benchmarks.errors import BenchmarkError


def existing(model: str) -> Path:
    """The path of a model; raises `BenchmarkError` where there is none."""
    if not Path(model).exists():
        raise BenchmarkError(f"model {model!r} does not exist here; give a model folder or a GGUF file")
    return Path(model)


def at_least(name: str, value: float, least: float = 1) -> None:
    """Raise `BenchmarkError` if the value of an option is too small."""
    if value < least:
        raise BenchmarkError(f"{name} is {value}; give a number of at least {least}")
