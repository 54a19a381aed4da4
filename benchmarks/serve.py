"""One engine on the work: a record for each shape."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median

from benchmarks.company import wait_for_quiet
from benchmarks.engines import EngineSpec
from benchmarks.machine import Record
from benchmarks.process import Loaded, Start, running
from benchmarks.work import Shape, Timing, company, measure, warm_up


def serve(spec: EngineSpec, start: Start, repeat: int, machine: Record) -> Iterator[Record]:
    """Start the engine, then measure shape after shape."""
    say(f"starting {spec.name}")
    with running(spec, start) as (engine, loaded):
        for shape in start.shapes:
            say(f"{spec.name}: n={shape.n} input={shape.num_input} output={shape.num_output}")
            warm_up(engine, shape, start.draw)
            timings = []
            for index in range(repeat):
                wait_for_quiet(start.quiet_s)
                timings.append(measure(engine, shape, start.draw, f"repeat {index}"))
            yield serve_record(loaded, timings, machine)


def serve_record(loaded: Loaded, timings: list[Timing], machine: Record) -> Record:
    """Return the medians of the repeats, and every wall beside them."""
    timing = Timing(
        shape=timings[0].shape,
        wall_s=median(t.wall_s for t in timings),
        first_token_wall=median(t.first_token_wall for t in timings),
        tokens=[],
    )
    return {
        "kind": "serve",
        **asdict(loaded),
        **shape_record(timing.shape),
        "wall_s": round(timing.wall_s, 4),
        "out_tok_s": round(timing.out_tok_s, 2),
        "in_tok_s": round(timing.in_tok_s, 2),
        "itl_ms": None if timing.itl_ms is None else round(timing.itl_ms, 3),
        "first_token_wall": round(timing.first_token_wall, 4),
        "walls_s": [round(t.wall_s, 4) for t in timings],
        "other_cores": company(timings),
        "machine": machine,
    }


def shape_record(shape: Shape) -> Record:
    """Return the shape under its command-line names."""
    return {"n": shape.n, "input": shape.num_input, "output": shape.num_output}


def say(text: str) -> None:
    """Tell the person who waits what is going on, apart from the records."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
