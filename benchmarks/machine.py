"""This machine: its name, its size, and its measured ceilings, for every record to carry."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError

Record = dict[str, Any]

# The units that decide how fast low precision is.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def describe(threads: int, device: str) -> Record:
    """Measure the machine; what else ran in the last minute shows in `load_1m`."""
    load_1m = round(os.getloadavg()[0], 2)
    cpuinfo = Path("/proc/cpuinfo")
    name, flags = parse_cpuinfo(cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else "")
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "threads": threads,
        "load_1m": load_1m,
        **_ceilings(threads, device),
    }


def parse_cpuinfo(text: str) -> tuple[str, set[str]]:
    """Return the model name and the flags of the first processor; both are empty where Linux names none."""
    fields = [line.partition(":") for line in text.splitlines()]
    values = {key.strip(): value.strip() for key, _, value in reversed(fields)}
    return values.get("model name", ""), set(values.get("flags", "").split())


def _ceilings(threads: int, device: str) -> Record:
    # In a process of its own: torch and its threads are gone before an engine starts.
    command = [sys.executable, "-m", "benchmarks.ceilings", "--threads", str(threads), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BenchmarkError(
            f"the ceilings of device {device!r} could not be measured with {sys.executable}: {reason[0]}"
        )
    ceilings: Record = json.loads(done.stdout)
    return ceilings
