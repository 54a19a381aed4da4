"""What a server costs that nobody asks anything: seconds to start, share of a core, resident memory."""

import time
from collections.abc import Iterator

import psutil

from benchmarks.company import other_cores, spent_s, usage
from benchmarks.engines import EngineSpec
from benchmarks.errors import BenchmarkError
from benchmarks.machine import Record
from benchmarks.process import Start
from benchmarks.serve import say
from benchmarks.server import Server, serving

# After the first token some threads wait busily for more work.
SETTLE_S = 2.0


def idle(spec: EngineSpec, start: Start, seconds: float, machine: Record) -> Iterator[Record]:
    """Start a server with its defaults, let it answer once, then watch it."""
    say("starting the server")
    with serving(spec, (), start.draw, cold=start.cold) as server:
        time.sleep(SETTLE_S)
        say(f"watching it for {seconds:g} s")
        yield {
            "kind": "idle",
            "model": spec.model.name,
            "precision": spec.precision,
            "health_s": server.health_s,
            "ready_s": server.ready_s,
            **_watch(server, seconds),
            "machine": machine,
        }


def _watch(server: Server, seconds: float) -> Record:
    tree = server.tree
    before = usage(tree)
    time.sleep(seconds)
    after = usage(tree)
    if before is None or after is None:
        raise BenchmarkError("idle reads the counters of Linux in /proc, which are not here")
    shares = {name: spent / (after.clock_s - before.clock_s) for name, spent in spent_s(before, after).items()}
    return {
        "seconds": seconds,
        "cores": round(sum(shares.values()), 5),
        "cores_of": {name: round(share, 5) for name, share in shares.items()},
        "resident_mb": {name: round(psutil.Process(pid).memory_info().rss / 1e6, 1) for pid, name in tree.items()},
        "other_cores": round(other_cores(before, after) or 0.0, 2),
    }
