"""An engine in a process of its own: started, timed to its first token, paused while another is measured."""

import contextlib
import os
import signal
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.conversation import Conversation, Pausable, conversing
from benchmarks.engines import EngineSpec
from benchmarks.peers.channel import Job
from benchmarks.work import Draw, Generation, Shape
from harmonia.engine.environment import compute_environment

# The room that an engine is given does not shrink with the work: its tuning must not follow one shape.
MIN_SEQUENCES = 64
MIN_LENGTH = 2048
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


class Side(Pausable):
    """One side of a comparison: it generates, and it can be paused while the other does."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], num_output: int) -> Generation:
        """Run all prompts at once, greedily, each to exactly `num_output` tokens."""


class EngineProcess(Side):
    """A running engine; `running` makes one."""

    def __init__(self, spec: EngineSpec, conversation: Conversation) -> None:
        self.spec = spec
        self._conversation = conversation

    @property
    def processes(self) -> Mapping[int, str]:
        """The session that holds them all."""
        return self._conversation.processes

    def load(self, job: Job, draw: Draw, began: float) -> Loaded:
        """Wait until the weights are read and a first token came back; `began` is when the process was spawned."""
        answer = self._conversation.ask(asdict(job))
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
        answer = self._conversation.ask({"prompts": prompts, "num_output_tokens": num_output})
        return Generation(wall_s=answer["wall_s"], tokens=answer["tokens"])

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes that are still there."""
        self._conversation.send_signal(number)


@contextlib.contextmanager
def running(spec: EngineSpec, start: Start) -> Iterator[tuple[EngineProcess, Loaded]]:
    """Start an engine, wait for its first token, and end all its processes afterwards."""
    with contextlib.ExitStack() as stack:
        caches = stack.enter_context(tempfile.TemporaryDirectory()) if start.cold else None
        began = time.perf_counter()
        command = [str(spec.python), "-m", spec.module]
        engine = EngineProcess(spec, stack.enter_context(conversing(spec.name, command, environment(spec, caches))))
        yield engine, engine.load(job_of(spec, start.shapes), start.draw, began)


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
    chosen = environment_of(spec.name, spec.threads)
    if caches is not None:
        chosen |= {name: str(Path(caches, name)) for name in CACHE_VARIABLES}
    return chosen


def environment_of(name: str, threads: int) -> dict[str, str]:
    """Return the environment of a process that computes: of `harmonia`, or of a peer."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    chosen = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    return compute_environment(chosen, threads) if name == "harmonia" else chosen
