"""What other processes did meanwhile."""

import os

import pytest

from benchmarks.company import Usage, other_cores, spent_s, usage, wait_for_quiet
from benchmarks.work import Shape, Timing, company


def at(clock_s: float, machine_s: float, own_s: float) -> Usage:
    return Usage(clock_s=clock_s, machine_s=machine_s, own_s={"engine": own_s})


def test_the_cores_of_the_engine_are_not_others() -> None:
    assert other_cores(at(0, 0, 0), at(10, 25, 20)) == 0.5


def test_counters_that_lag_behind_give_no_negative_cores() -> None:
    assert other_cores(at(0, 0, 0), at(10, 20, 20.1)) == 0.0


def test_without_counters_nothing_is_claimed() -> None:
    assert other_cores(None, at(10, 20, 20)) is None
    assert spent_s(None, at(10, 20, 20)) == {}
    assert company([]) is None


def test_the_worst_run_is_reported() -> None:
    shape = Shape(n=1, num_input=1, num_output=1)
    timings = [Timing(shape=shape, wall_s=1, first_token_wall=1, tokens=[], other_cores=x) for x in (0.1, 0.9, None)]
    assert company(timings) == 0.9


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the counters are Linux's")
def test_a_process_counts_for_itself_or_for_the_one_that_leads_its_session() -> None:
    leader = os.getsid(0)
    together, apart = usage({leader: "leader"}), usage({leader: "leader", os.getpid(): "own"})
    assert together is not None
    assert apart is not None
    assert 0 < together.own_s["leader"] <= together.machine_s
    assert apart.own_s["own"] > 0


def test_what_was_spent_is_told_by_name() -> None:
    assert spent_s(at(0, 0, 5), at(10, 20, 7)) == {"engine": 2}


def test_no_wait_unless_asked() -> None:
    wait_for_quiet(0.0)
