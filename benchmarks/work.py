"""The work that every engine is given: shapes, and random prompts of token ids."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.company import other_cores, spent_s, usage
from benchmarks.errors import BenchmarkError

# The lowest ids are control tokens in most vocabularies.
FIRST_TOKEN_ID = 100


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`n` requests at once, each with its prompt length and its number of generated tokens."""

    n: int
    num_input: int
    num_output: int

    @property
    def length(self) -> int:
        """The longest sequence of the work."""
        return self.num_input + self.num_output


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Where random prompts come from: the same draw gives the same prompts, another salt gives fresh ones."""

    seed: int
    vocab: int

    def prompts(self, shape: Shape, salt: str) -> list[list[int]]:
        """Return prompts that no other salt repeats, so that no prefix cache can help."""
        rng = random.Random(f"{self.seed}/{shape.n}/{shape.num_input}/{shape.num_output}/{salt}")
        return [random_tokens(rng, shape.num_input, self.vocab) for _ in range(shape.n)]


def random_tokens(rng: random.Random, size: int, vocab: int) -> list[int]:
    """Return so many ids below `vocab`."""
    return [rng.randrange(FIRST_TOKEN_ID, vocab) for _ in range(size)]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one run of an engine gave."""

    wall_s: float
    tokens: list[list[int]]
    """Empty where the tokens were counted only."""
    ttft_s: Sequence[float] = ()
    """Until the first token of each request, where it could be seen."""


class Generates(Protocol):
    """An engine as the measurements see it."""

    @property
    def processes(self) -> Mapping[int, str]:
        """Its processes, for `company.usage`."""
        ...

    def generate(self, prompts: list[list[int]], num_output: int) -> Generation:
        """Run all prompts at once, greedily, each to exactly `num_output` tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run of a shape, and the wall of the same run with one output token."""

    shape: Shape
    wall_s: float
    first_token_wall: float
    tokens: list[list[int]]
    other_cores: float | None = None
    ttft_s: Sequence[float] = ()
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    """Processor seconds of each process during the run in full."""

    @property
    def in_tok_s(self) -> float:
        """Prompt tokens a second until every request has its first token."""
        return self.shape.n * self.shape.num_input / self.first_token_wall

    @property
    def out_tok_s(self) -> float:
        """Generated tokens a second over the whole run, prefill included."""
        return self.shape.n * self.shape.num_output / self.wall_s

    @property
    def itl_ms(self) -> float | None:
        """Milliseconds between two tokens of a request; none where there is only one."""
        if self.shape.num_output == 1:
            return None
        return (self.wall_s - self.first_token_wall) / (self.shape.num_output - 1) * 1e3


def shapes(counts: Sequence[int], num_input: int, num_output: int) -> list[Shape]:
    """Return one shape for each number of requests."""
    for name, value in (("--input", num_input), ("--output", num_output), *(("--n", n) for n in counts)):
        if value < 1:
            raise BenchmarkError(f"{name} is {value}; give a number of at least 1")
    return [Shape(n=n, num_input=num_input, num_output=num_output) for n in counts]


def warm_up(engine: Generates, shape: Shape, draw: Draw) -> None:
    """Let an engine make what it makes once for this many requests (buffers, kernels, graphs)."""
    short = Shape(n=shape.n, num_input=min(shape.num_input, 16), num_output=min(shape.num_output, 4))
    engine.generate(draw.prompts(short, "warm-up"), short.num_output)


def measure(engine: Generates, shape: Shape, draw: Draw, salt: str) -> Timing:
    """Time the shape once, on prompts of its own; the first-token run has others."""
    start = began = usage(engine.processes)
    first = whole = engine.generate(draw.prompts(shape, f"{salt}/first"), 1)
    if shape.num_output > 1:
        prompts = draw.prompts(shape, salt)
        began = usage(engine.processes)
        whole = engine.generate(prompts, shape.num_output)
    end = usage(engine.processes)
    return Timing(
        shape=shape,
        wall_s=whole.wall_s,
        first_token_wall=first.wall_s,
        tokens=whole.tokens,
        other_cores=other_cores(start, end),
        ttft_s=whole.ttft_s,
        cpu_s=spent_s(began, end),
    )


def company(timings: Iterable[Timing]) -> float | None:
    """Return the most cores that something else kept busy during any of the runs."""
    known = [timing.other_cores for timing in timings if timing.other_cores is not None]
    return round(max(known), 2) if known else None
