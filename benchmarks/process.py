"""An engine in a process of its own: started, timed to its first token, paused while another is measured."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.engines import EngineSpec
from benchmarks.errors import BenchmarkError
from benchmarks.peers.channel import Job
from benchmarks.work import Draw, Generation, Shape
from harmonia.engine.environment import compute_environment

# The room that an engine is given does not shrink with the work: its tuning must not follow one shape.
MIN_SEQUENCES = 64
MIN_LENGTH = 2048
STDERR_LINES = 15
SECONDS_TO_LEAVE = 10
READY_SHAPE = Shape(n=1, num_input=16, num_output=1)
# Where the compilers that engines use keep what they made; an empty one makes a start a first start.
CACHE_VARIABLES = (
    "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Start:
    """For which work engines are started, whether with empty caches, how long they may wait for a quiet machine."""

    shapes: Sequence[Shape]
    draw: Draw
    cold: bool = False
    quiet_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What runs, as a record tells it: the model by its name alone, since a path says nothing to a reader."""

    engine: str
    engine_version: str
    model: str
    precision: str
    ready_s: float


class Side(ABC):
    """One side of a comparison: it generates, and it can be paused while the other does."""

    @property
    @abstractmethod
    def processes(self) -> Mapping[int, str]:
        """Its processes, for `company.usage`."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], num_output: int) -> Generation:
        """Run all prompts at once, greedily, each to exactly `num_output` tokens."""

    @abstractmethod
    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes that are still there."""

    def pause(self) -> None:
        """Stop every thread of it: some spin for a while, or for ever, when idle."""
        self.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run, and pause it again."""
        self.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()


class EngineProcess(Side):
    """A running engine; `running` makes one."""

    def __init__(self, spec: EngineSpec, popen: subprocess.Popen[str], errors: IO[str]) -> None:
        self.spec = spec
        self._popen = popen
        self._errors = errors

    @property
    def processes(self) -> Mapping[int, str]:
        """The session that holds them all."""
        return {self._popen.pid: "engine"}

    def load(self, job: Job, draw: Draw, began: float) -> Loaded:
        """Wait until the weights are read and a first token came back; `began` is when the process was spawned."""
        answer = self._ask(asdict(job))
        self.generate(draw.prompts(READY_SHAPE, "ready"), READY_SHAPE.num_output)
        return Loaded(
            engine=self.spec.name,
            engine_version=answer["version"],
            model=self.spec.model.name,
            precision=answer["precision"],
            ready_s=round(time.perf_counter() - began, 2),
        )

    def generate(self, prompts: list[list[int]], num_output: int) -> Generation:
        """Run all prompts at once, greedily, each to exactly `num_output` tokens."""
        answer = self._ask({"prompts": prompts, "num_output_tokens": num_output})
        return Generation(wall_s=answer["wall_s"], tokens=answer["tokens"])

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes that are still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def close(self) -> None:
        """Hang up, give the engine time to leave, then end what it left behind."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(SECONDS_TO_LEAVE)
        self.send_signal(signal.SIGKILL)
        self._popen.wait()
        self._popen.stdout.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps(message) + "\n")
            self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            raise BenchmarkError(
                f"{self.spec.name} ended with status {self._popen.wait()}:\n{last_words(self._errors)}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer


@contextlib.contextmanager
def running(spec: EngineSpec, start: Start) -> Iterator[tuple[EngineProcess, Loaded]]:
    """Start an engine, wait for its first token, and end all its processes afterwards."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        caches = stack.enter_context(tempfile.TemporaryDirectory()) if start.cold else None
        began = time.perf_counter()
        popen = subprocess.Popen(
            [spec.python, "-m", spec.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(spec, caches),
            # A session of its own, so that a pause and an end reach every process that the engine starts.
            start_new_session=True,
        )
        engine = EngineProcess(spec, popen, errors)
        stack.callback(engine.close)
        yield engine, engine.load(job_of(spec, start.shapes), start.draw, began)


def last_words(errors: IO[str]) -> str:
    """Return the last lines that a process wrote there."""
    errors.seek(0)
    return "".join(errors.readlines()[-STDERR_LINES:]).rstrip()


def job_of(spec: EngineSpec, shapes: Sequence[Shape]) -> Job:
    """Return what an engine must be ready for."""
    return Job(
        model=str(spec.model),
        precision=spec.precision,
        threads=spec.threads,
        max_sequences=max(MIN_SEQUENCES, *(shape.n for shape in shapes)),
        max_length=max(MIN_LENGTH, *(shape.length for shape in shapes)),
    )


def environment(spec: EngineSpec, caches: str | None) -> dict[str, str]:
    """Return the environment of an engine; `caches` is the folder of its compile caches, None for its own."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(spec.threads)}
    if spec.name == "harmonia":
        environment = compute_environment(environment, spec.threads)
    if caches is not None:
        environment |= {name: str(Path(caches, name)) for name in CACHE_VARIABLES}
    return environment
