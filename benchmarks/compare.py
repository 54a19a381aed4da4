"""Two engines in turn on the same work, and the ratio of each pair: machines drift, pairs drift together."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import takewhile
from statistics import mean, median

from benchmarks.company import wait_for_quiet
from benchmarks.engines import EngineSpec
from benchmarks.machine import Record
from benchmarks.process import Loaded, Side, Start, running
from benchmarks.serve import say, shape_record
from benchmarks.work import Draw, Shape, Timing, company, measure, warm_up

Pair = tuple[Timing, Timing]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The least, the middle and the greatest of some values."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value."""
    return Spread(low=min(values), median=median(values), high=max(values))


def speeds(timing: Timing) -> dict[str, float]:
    """Return what the engines are compared by; more is faster."""
    if timing.itl_ms is None:
        return {"in_tok_s": timing.in_tok_s}
    # A shape of few tokens on a noisy machine can have a first-token run that took longer than the whole.
    decode = {"decode_tok_s": timing.shape.n * 1e3 / timing.itl_ms} if timing.itl_ms > 0 else {}
    return {"out_tok_s": timing.out_tok_s, "in_tok_s": timing.in_tok_s, **decode}


def agreement(a: list[list[int]], b: list[list[int]]) -> float:
    """Return how far two greedy answers are the same, from 0 to 1: the mean share before they part."""
    shares = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(x, y, strict=True))) / len(x)
        for x, y in zip(a, b, strict=True)
    ]
    return mean(shares)


def compare(first: EngineSpec, second: EngineSpec, start: Start, pairs: int, machine: Record) -> Iterator[Record]:
    """Load both engines, then let them take turns; the one that waits is paused."""
    with ExitStack() as stack:
        engines, told = [], []
        for spec in (first, second):
            say(f"starting {spec.name}")
            engine, loaded = stack.enter_context(running(spec, start))
            engine.pause()
            engines.append(engine)
            told.append(loaded)
        for shape in start.shapes:
            say(f"in turn: n={shape.n} input={shape.num_input} output={shape.num_output}")
            warm_up_all(engines, shape, start.draw)
            timings = [measure_pair(engines, shape, start, index) for index in range(pairs)]
            yield from compare_records(told[0], told[1], timings, machine)


def compare_records(a: Loaded, b: Loaded, pairs: Sequence[Pair], machine: Record) -> Iterator[Record]:
    """Return a record for each speed that every pair has; a ratio over 1 says that the first is faster."""
    values = [(speeds(x), speeds(y)) for x, y in pairs]
    common = [name for name in values[0][0] if all(name in x and name in y for x, y in values)]
    for name in common:
        ratio = spread([x[name] / y[name] for x, y in values])
        yield {
            "kind": "compare",
            **shape_record(pairs[0][0].shape),
            "metric": name,
            "a": asdict(a) | {"values": [round(x[name], 2) for x, _ in values]},
            "b": asdict(b) | {"values": [round(y[name], 2) for _, y in values]},
            "ratio_min": round(ratio.low, 3),
            "ratio_median": round(ratio.median, 3),
            "ratio_max": round(ratio.high, 3),
            "agreement": round(mean(agreement(x.tokens, y.tokens) for x, y in pairs), 4),
            "other_cores": company(timing for pair in pairs for timing in pair),
            "machine": machine,
        }


def warm_up_all(sides: Sequence[Side], shape: Shape, draw: Draw) -> None:
    """Warm paused sides up, one after the other."""
    for side in sides:
        with side.awake():
            warm_up(side, shape, draw)


def measure_pair(sides: Sequence[Side], shape: Shape, start: Start, index: int) -> Pair:
    """Measure two paused sides in turn, the timing of the first of them first."""
    wait_for_quiet(start.quiet_s)
    # Who goes first changes from pair to pair, so that neither always has the warmer or the cooler machine.
    order = (0, 1) if index % 2 == 0 else (1, 0)
    timings = {}
    for i in order:
        with sides[i].awake():
            timings[i] = measure(sides[i], shape, start.draw, f"pair {index}")
    return timings[0], timings[1]
