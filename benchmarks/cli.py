"""The command line: `serve`, `compare`, `http`, `idle` and `machine`."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from benchmarks.compare import compare
from benchmarks.engines import KINDS, engine_spec
from benchmarks.errors import BenchmarkError
from benchmarks.idle import idle
from benchmarks.machine import Record, describe
from benchmarks.process import Start
from benchmarks.report import emit
from benchmarks.serve import serve
from benchmarks.streamed import streamed
from benchmarks.work import FIRST_TOKEN_ID, Draw, shapes


def main(arguments: Sequence[str]) -> int:
    """Run one command; what the caller can mend ends with status 2."""
    options = parser().parse_args(arguments)
    as_table = sys.stdout.isatty() if options.table is None else options.table
    try:
        emit(records(options), as_table=as_table)
    except BenchmarkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def records(options: argparse.Namespace) -> Iterator[Record]:
    """Turn parsed options into the records of their command."""
    if options.threads < 1:
        raise BenchmarkError(f"--threads is {options.threads}; give a number of at least 1")
    if options.command == "machine":
        yield {"kind": "machine", "machine": describe(options.threads, options.device)}
        return
    start = _start(options)
    own = engine_spec(options.engine, options.model, options.precision, options.python, options.threads)
    match options.command:
        case "serve":
            _at_least_one("--repeat", options.repeat)
            yield from serve(own, start, options.repeat, describe(options.threads, options.device))
        case "compare":
            _at_least_one("--pairs", options.pairs)
            rival_model = options.vs_model or options.model
            rival = engine_spec(options.vs, rival_model, options.vs_precision, options.vs_python, options.threads)
            yield from compare(own, rival, start, options.pairs, describe(options.threads, options.device))
        case "http":
            _at_least_one("--pairs", options.pairs)
            yield from streamed(own, start, options.pairs, describe(options.threads, options.device))
        case "idle":
            _at_least_one("--seconds", options.seconds)
            yield from idle(own, start, options.seconds, describe(options.threads, options.device))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Harmonia and its peers on the same work.")
    commands = top.add_subparsers(dest="command", required=True)
    _add_common(commands.add_parser("machine", help="measure this machine's ceilings"))

    one = commands.add_parser("serve", help="measure one engine")
    _add_common(one)
    _add_work(one)
    _add_engine(one)
    one.add_argument("--repeat", type=int, default=1, help="runs of each shape; the record holds their median")

    two = commands.add_parser("compare", help="let two engines take turns, and report the ratio of their speeds")
    _add_common(two)
    _add_work(two)
    _add_engine(two)
    two.add_argument("--vs", required=True, choices=sorted(KINDS), help="the other engine")
    two.add_argument("--vs-model", help="its model, if it reads another folder or file")
    two.add_argument("--vs-precision", help="its precision (default: its first)")
    two.add_argument("--vs-python", help="the python of its own environment (default: this one)")
    two.add_argument("--pairs", type=int, default=3, help="how often they take turns on each shape")

    three = commands.add_parser("http", help="measure what streamed HTTP costs over calling the engine directly")
    _add_common(three)
    _add_work(three)
    _add_model(three)
    three.add_argument("--pairs", type=int, default=3, help="how often server and engine take turns on each shape")
    three.set_defaults(engine="harmonia", n=[32])

    four = commands.add_parser("idle", help="measure how long a server takes to start, and what it costs when idle")
    _add_common(four)
    _add_draw(four)
    _add_model(four)
    four.add_argument("--seconds", type=float, default=20.0, help="how long to watch it")
    four.set_defaults(engine="harmonia", n=[1], input=1, output=1, quiet=0.0)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    command.add_argument("--threads", type=int, default=cores, help="threads of each engine (default: all cores)")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose ceilings to measure")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--table", action="store_true", default=None, help="a table (default on a terminal)")
    output.add_argument("--json", dest="table", action="store_false", help="JSON lines (default elsewhere)")


def _add_work(command: argparse.ArgumentParser) -> None:
    command.add_argument("--n", type=_counts, default="1,8,32", help="requests at once, one shape for each number")
    command.add_argument("--input", type=int, default=128, help="tokens of each prompt")
    command.add_argument("--output", type=int, default=128, help="tokens that each request generates")
    command.add_argument("--quiet", type=float, default=0.0, help="seconds to wait for an idle machine before each run")
    _add_draw(command)


def _add_draw(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="of the random prompts")
    command.add_argument("--vocab", type=int, default=40000, help="prompts hold token ids below this")
    command.add_argument("--cold", action="store_true", help="start the engines with empty compile caches")


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", required=True, choices=sorted(KINDS))
    _add_model(command)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="a model folder, or a GGUF file")
    command.add_argument("--precision", help="of the weights (default: the engine's first)")
    command.add_argument("--python", help="the python of the engine's own environment (default: this one)")


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _at_least_one(name: str, value: float) -> None:
    if value < 1:
        raise BenchmarkError(f"{name} is {value}; give a number of at least 1")


def _start(options: argparse.Namespace) -> Start:
    if options.vocab <= FIRST_TOKEN_ID:
        raise BenchmarkError(f"--vocab is {options.vocab}; give more than {FIRST_TOKEN_ID}, the first id that is drawn")
    work = shapes(options.n, options.input, options.output)
    draw = Draw(seed=options.seed, vocab=options.vocab)
    return Start(shapes=work, draw=draw, cold=options.cold, quiet_s=options.quiet)
