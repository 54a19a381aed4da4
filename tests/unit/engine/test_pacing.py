"""Training beside serving takes its share of the time, whatever its slices take."""

from __future__ import annotations

import pytest
import torch

from harmonia.engine import pacing
from harmonia.engine.pacing import Pacer
from harmonia.train.packing import Slice

CPU = torch.device("cpu")
KINDS = {"forward": 0.004, "head": 0.016, "backward": 0.012}
STEP_S = 0.01


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def train(pacer: Pacer, clock: Clock, piece: Slice, seconds: float, *, beside_serving: bool = True) -> None:
    def run() -> None:
        clock.now += seconds

    pacer.run(run, piece, CPU, beside_serving=beside_serving)


def teach(pacer: Pacer, clock: Clock, piece: Slice, seconds: float) -> None:
    """The first time says nothing."""
    for _ in range(2):
        train(pacer, clock, piece, seconds, beside_serving=False)


def test_slices_take_their_share_beside_serving(clock: Clock) -> None:
    pacer, trained_s, steps = Pacer(0.2), 0.0, 2000
    pieces = [Slice(kind, 1024) for kind in KINDS for _ in range(5)]
    for piece in pieces:  # what each takes is learned while nothing is served
        teach(pacer, clock, piece, KINDS[piece.kind])
    done, since = 0, clock.now
    for _ in range(steps):
        clock.now += STEP_S
        pacer.served(clock.now - since)
        since = clock.now
        piece = pieces[done % len(pieces)]
        if pacer.may_train(piece):
            train(pacer, clock, piece, KINDS[piece.kind])
            trained_s += KINDS[piece.kind]
            done += 1
    assert trained_s / (steps * STEP_S) == pytest.approx(0.2, rel=0.02)


def test_a_dear_slice_after_cheap_ones_waits_for_its_own_time(clock: Clock) -> None:
    pacer = Pacer(0.2)
    for kind, seconds in KINDS.items():
        teach(pacer, clock, Slice(kind, 1024), seconds)
    pacer.served(0.04)
    assert pacer.may_train(Slice("forward", 1024))
    assert not pacer.may_train(Slice("head", 1024))
    assert pacer.may_train(Slice("head", 256))
    assert not pacer.may_train(Slice("a new kind", 1024)), "taken for one of the slowest"
    for _ in range(4):
        pacer.served(STEP_S)
    assert pacer.may_train(Slice("head", 1024))


def test_what_was_not_used_is_not_saved_up(clock: Clock) -> None:
    pacer, piece = Pacer(0.2), Slice("forward", 1024)
    teach(pacer, clock, piece, 0.004)
    for _ in range(100):
        pacer.served(STEP_S)
    ran = 0
    while pacer.may_train(piece):
        train(pacer, clock, piece, 0.004)
        ran += 1
    assert ran == 1


def test_commands_do_not_make_slices_look_slow(clock: Clock) -> None:
    pacer = Pacer(0.2)
    teach(pacer, clock, Slice("command", 1), 0.5)
    teach(pacer, clock, Slice("forward", 1024), 0.004)
    assert pacer.expected(Slice("head", 1024)) == pytest.approx(0.004)


def test_a_slice_that_compiles_does_not_stop_training_beside_serving(clock: Clock) -> None:
    pacer, ran = Pacer(0.2), 0
    clock.now = STEP_S
    pacer.stepped(0.0, served=True)
    for kind in KINDS:  # nothing is known, and each takes 10 s once
        train(pacer, clock, Slice(kind, 1024), 10.0)
    for _ in range(1000):
        clock.now += STEP_S
        pacer.stepped(clock.now - STEP_S, served=True)
        piece = Slice(list(KINDS)[ran % 3], 1024)
        if pacer.may_train(piece):
            seconds = 5.0 if ran == 30 else KINDS[piece.kind]
            train(pacer, clock, piece, seconds)
            ran += 1
    assert ran > 100, "of some 180 that fit into a fifth of the time"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_little_is_queued_on_a_gpu() -> None:
    pacer, x = Pacer(0.2), torch.zeros(8192, 8192, device="cuda")
    for _ in range(60):
        pacer.run(lambda: torch.mm(x, x), Slice("forward", 1024), x.device, beside_serving=True)
    in_flight_s = sum(queued.expected_s for queued in pacer._queued)
    assert in_flight_s < 2 * pacing._AHEAD_S
    torch.cuda.synchronize()
    pacer.served(10.0)
    assert not pacer._queued
    assert pacer.may_train(Slice("forward", 1024))
