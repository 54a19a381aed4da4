"""What streamed HTTP costs: the same engine called directly and behind `harmonia serve`, in turn."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from statistics import median

from benchmarks.compare import Pair, measure_pair, spread, warm_up_all
from benchmarks.engines import EngineSpec
from benchmarks.machine import Record
from benchmarks.process import Loaded, Start, job_of, running
from benchmarks.serve import say, shape_record
from benchmarks.server import serving
from benchmarks.work import Shape, Timing, company


def streamed(spec: EngineSpec, start: Start, pairs: int, machine: Record) -> Iterator[Record]:
    """Let the two take turns; the one that waits is paused."""
    for shape in start.shapes:
        say(f"in turn: n={shape.n} input={shape.num_input} output={shape.num_output}")
        told, timings = zip(*(_pair(spec, start, shape, index) for index in range(pairs)), strict=True)
        yield streamed_record(told[-1], timings, machine)


def _pair(spec: EngineSpec, start: Start, shape: Shape, index: int) -> tuple[tuple[Loaded, Loaded], Pair]:
    # Where its memory came to lie makes a process some percent faster or slower than another: each pair starts anew.
    job = job_of(spec, start.shapes)
    options = ("--max-adapters", "0", "--kv-cache-len", str(job.max_sequences * job.max_length))
    with ExitStack() as stack:
        server = stack.enter_context(serving(spec, options, start.draw, cold=start.cold))
        server.pause()
        engine, loaded = stack.enter_context(running(spec, start))
        engine.pause()
        warm_up_all((server, engine), shape, start.draw)
        behind = replace(loaded, engine="harmonia serve", ready_s=server.ready_s)
        return (behind, loaded), measure_pair((server, engine), shape, start, index)


def streamed_record(told: tuple[Loaded, Loaded], pairs: Sequence[Pair], machine: Record) -> Record:
    """Return one record of a shape; first comes the server, then the engine that is called directly."""
    http, direct = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratio = spread([a.out_tok_s / b.out_tok_s for a, b in pairs])
    ttft_ms = spread([seconds * 1e3 for timing in http for seconds in timing.ttft_s])
    return {
        "kind": "http",
        **shape_record(pairs[0][0].shape),
        "http": asdict(told[0]) | {"values": [round(timing.out_tok_s, 2) for timing in http]},
        "engine": asdict(told[1]) | {"values": [round(timing.out_tok_s, 2) for timing in direct]},
        "ratio_min": round(ratio.low, 3),
        "ratio_median": round(ratio.median, 3),
        "ratio_max": round(ratio.high, 3),
        "http_first_s": round(median(timing.first_token_wall for timing in http), 4),
        "engine_first_s": round(median(timing.first_token_wall for timing in direct), 4),
        "ttft_ms": round(ttft_ms.median, 1),
        "ttft_max_ms": round(ttft_ms.high, 1),
        "cpu_us": cpu_us(http) | cpu_us(direct),
        "other_cores": company(timing for pair in pairs for timing in pair),
        "machine": machine,
    }


def cpu_us(timings: Sequence[Timing]) -> dict[str, float]:
    """Return the processor time that each process used for a generated token, in microseconds."""
    tokens = timings[0].shape.n * timings[0].shape.num_output
    return {name: round(median(t.cpu_s[name] for t in timings) / tokens * 1e6, 1) for name in timings[0].cpu_s}
