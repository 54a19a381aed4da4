"""Who else used the cores: a figure taken beside a busy neighbour is no figure."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# Fields of the first line of /proc/stat that count as work; time that the hypervisor gave away is lost as well.
USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 1, 2, 3, 6, 7, 8
# Fields of /proc/PID/stat, counted after the name, which may hold spaces.
SESSION, USER_TIME, SYSTEM_TIME = 3, 11, 12
QUIET_CORES = 0.1
LOOK_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Seconds of processor time until now: of the whole machine, and of our own processes by name."""

    clock_s: float
    machine_s: float
    own_s: Mapping[str, float]


def usage(own: Mapping[int, str]) -> Usage | None:
    """Read the counters; none where there is no Linux to keep them.

    own: names of processes by their ids; one that leads a session also stands for those in it that have no name.
    """
    if not (PROC / "stat").exists():
        return None
    line = (PROC / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    ticks = os.sysconf("SC_CLK_TCK")
    machine = sum(int(line[field]) for field in (USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL))
    own_s = dict.fromkeys(own.values(), 0.0)
    for pid, session, used in _processes():
        name = own.get(pid) or own.get(session)
        if name is not None:
            own_s[name] += used / ticks
    return Usage(clock_s=time.perf_counter(), machine_s=machine / ticks, own_s=own_s)


def spent_s(before: Usage | None, after: Usage | None) -> dict[str, float]:
    """Return the processor seconds that each of our own processes used in between."""
    if before is None or after is None:
        return {}
    return {name: seconds - before.own_s[name] for name, seconds in after.own_s.items()}


def other_cores(before: Usage | None, after: Usage | None) -> float | None:
    """Return how many cores were busy in between with something else than our own processes."""
    if before is None or after is None:
        return None
    others = (after.machine_s - before.machine_s) - sum(spent_s(before, after).values())
    return max(0.0, others / (after.clock_s - before.clock_s))


def wait_for_quiet(limit_s: float) -> None:
    """Wait until the machine has next to nothing to do, at most so long."""
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        before = usage({})
        time.sleep(LOOK_SECONDS)
        busy = other_cores(before, usage({}))
        if busy is None or busy < QUIET_CORES:
            return


def _processes() -> Iterator[tuple[int, int, int]]:
    """Id, session and used ticks of every process."""
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(entry.name), int(fields[SESSION]), int(fields[USER_TIME]) + int(fields[SYSTEM_TIME])
