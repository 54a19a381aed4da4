"""The process that holds the runtime: `python -m benchmarks gpu` starts it with the environment that workers have."""

from __future__ import annotations

import json
import sys

from benchmarks.gpu.job import Job
from benchmarks.gpu.stages import run

if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    sys.exit(run(Job(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})))
