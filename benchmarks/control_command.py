"""The command `control`: checks of permission under load, and chats through the control plane."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.checks import at_least, existing
from benchmarks.control import Crowd, control
from benchmarks.machine import Record, describe
from benchmarks.memory import installed_smollm2
from benchmarks.overhead import Work, overhead
from benchmarks.tiny import write_talking
from benchmarks.work import shapes

REQUESTS, TINY_REQUESTS = 8, 192
"""Chats of a turn, at least."""


def control_records(options: argparse.Namespace) -> Iterator[Record]:
    """The parts that were asked for."""
    with ExitStack() as stack:
        crowd, chats = _crowd(options), list(_chats(options, stack))
        machine = describe(options.threads, options.device)
        if "checks" in options.only:
            yield from control(options.database, crowd, machine)
        for model, work in chats:
            yield from overhead(options.database, model, work, machine)


def _crowd(options: argparse.Namespace) -> Crowd:
    for name in ("users", "projects", "rate", "seconds"):
        at_least(f"--{name}", getattr(options, name))
    return Crowd(options.users, options.projects, options.rate, options.seconds, options.seed)


def _chats(options: argparse.Namespace, stack: ExitStack) -> Iterator[tuple[Path, Work]]:
    """The models to ask, and how."""
    at_least("--pairs", options.pairs)
    work = partial(
        Work,
        shapes=shapes(options.n, options.input, options.output),
        pairs=options.pairs,
        seed=options.seed,
        threads=options.threads,
        quiet_s=options.quiet,
    )
    if "tiny" in options.only:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        yield write_talking(Path(folder, "tiny")), work(requests=TINY_REQUESTS, is_tiny=True)
    if "model" in options.only:
        model = installed_smollm2() if options.model is None else existing(options.model)
        yield model, work(requests=REQUESTS, is_tiny=False)
