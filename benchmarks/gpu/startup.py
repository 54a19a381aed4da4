"""From the start of a process to its first token, with the caches of all compilers empty."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process import CACHE_VARIABLES, environment_of

SHORT = 16


def first_token(model: str, device: str) -> dict[str, float]:
    """Start such a process; seconds to each of its stations. The caller has given back the memory of the device."""
    with tempfile.TemporaryDirectory() as folder:
        environment = environment_of("harmonia", 1) | {name: str(Path(folder, name)) for name in CACHE_VARIABLES}
        del environment["OMP_NUM_THREADS"]
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.startup", model, device],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the process ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    stations = json.loads(done.stdout.splitlines()[-1])
    return {name: moment - began for name, moment in stations.items()}


def main(model: str, device: str) -> None:
    """Be that process: weights are drawn on the device, as the peer's are."""
    stations = {"python_s": time.time()}
    # What the process imports is part of what is measured.
    from benchmarks.gpu.job import Job
    from benchmarks.gpu.models import opened
    from benchmarks.gpu.serving import BASE, Bench, config_of, spec_of

    stations["imported_s"] = time.time()
    job = Job(
        models=(model,),
        groups=(),
        device=device,
        counts=(1,),
        quick=True,
        micro_batch=None,
        traces=(),
        out=None,
        merge=(),
        write_results=False,
    )
    with opened(model, BASE, spec_of(job), config_of(job)) as driver:
        stations["loaded_s"] = time.time()
        bench = Bench(driver, job)
        bench.run(bench.prompts.draw(1, SHORT), 1)
        stations["first_token_s"] = time.time()
        bench.run(bench.prompts.draw(4, SHORT), 8)
        stations["eight_tokens_s"] = time.time()
        sys.stdout.write(json.dumps(stations) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
