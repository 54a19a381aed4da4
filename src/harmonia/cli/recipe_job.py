"""One run of a recipe: a worker, the recipe in this process, and a journal, from the start to the end of all three."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonia.cli.jobs import OPTIM_STEP
from harmonia.cli.live import Display
from harmonia.cli.recipe_flags import overlay, parse_flags, read_values
from harmonia.client.recipe import (
    JobState,
    JournalJobNotifier,
    Recipe,
    RecipeConfig,
    RecipeContext,
    load_recipe,
    read_restore_data,
    run_recipe,
    use_dependencies,
    validate_input,
)
from harmonia.client.recipe.notifiers import Metric
from harmonia.config import WorkerConfig
from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.log import ROUTINE, get_logger
from harmonia.models.atomic import remove_abandoned
from harmonia.models.registry import ModelRegistry
from harmonia.protocol.fleet import WorkerState

log = get_logger(__name__)

ENTRYPOINT = "main.py"
INTERRUPTED = 130
_LOOKING_S = 0.1
"""For longer than that `harmonia jobs` does not hold a folder to see whether it is held."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Order:
    """What shall run, and where."""

    name: str
    """The recipe as the user named it, absolute if it is a path."""
    path: Path
    """Its file or folder."""
    job_id: str
    folder: Path
    """The job's."""
    flags: tuple[str, ...] = ()
    """Parameters as flags; they override the file."""
    config_file: Path | None = None
    """Parameters as JSON."""
    resumed: JobState | None = None
    """The earlier run that this one continues; its parameters are the defaults."""
    address: str | None = None
    """Of a worker that runs already; None starts one."""
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    """The worker to start."""


class Journal(JournalJobNotifier):
    """A journal that tells the display, too."""

    shows_metrics = True
    """Metric loggers need not print what is on the display."""

    def __init__(self, order: Order, display: Display) -> None:
        self._display = display
        self._is_resumed = order.resumed is not None
        self._described: tuple[str, Mapping[str, Any]] | None = None
        self._registry = ModelRegistry(order.worker.registry_folder()) if order.address is None else None
        super().__init__(order.folder, order.job_id, self._show)
        if order.resumed is None:
            self.describe(order.name, {})

    def describe(self, recipe: str, config: Mapping[str, Any]) -> None:
        """Keep what runs and with which input: of a job that is resumed only once it has really gone on, since an
        input that its checkpoint refuses must not be what the next attempt begins with."""
        self._described = (recipe, config)
        if not self._is_resumed:
            self._keep_description()

    def report_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Keep a checkpoint, and remove the models of those before it from the registry."""
        super().report_checkpoint(*args, **kwargs)
        self._keep_description()
        resumable = [checkpoint for checkpoint in self.state.checkpoints if checkpoint.file]
        newest = (self.state.checkpoints[-1], *resumable[-1:])
        kept = {key for checkpoint in newest for key in checkpoint.models.values()}
        self._remove({key for checkpoint in self.state.checkpoints for key in checkpoint.models.values()} - kept)

    def complete(self) -> None:
        """COMPLETED, which leaves no use for checkpoints, nor for what a recipe put beside them for a while."""
        self._keep_description()
        super().complete()
        self._remove(() if self._registry is None else self._registry.keys())

    def sweep(self) -> None:
        """Remove what the recipe put beside its checkpoints: a job that is resumed begins with one of these."""
        if self._registry is not None:
            named = {key for checkpoint in self.state.checkpoints for key in checkpoint.models.values()}
            self._remove(set(self._registry.keys()) - named)

    def report_metrics(self, stage: str, metrics: Mapping[str, Metric]) -> None:
        """Append a record, and show what of it is shown."""
        super().report_metrics(stage, metrics)
        self._display.record(metrics)

    def step(self, model: str, metrics: Mapping[str, float]) -> None:
        """Keep and show a step of the optimizer, of recipes that log nothing as well."""
        self._keep_description()
        super().report_metrics(OPTIM_STEP, {"model": model, **metrics})
        self._display.step(model, metrics)

    def _show(self, state: JobState) -> None:
        for stage in state.stages:
            self._display.stage(stage.name, stage.processed or 0, stage.total or 0)

    def _keep_description(self) -> None:
        described, self._described = self._described, None
        if described is not None:
            super().describe(*described)

    def _remove(self, keys: Iterable[str]) -> None:
        """Remove those of the models that are this job's own, where the registry is that of a worker started here."""
        if self._registry is None:
            return
        own = f"checkpoints/{self.job_id}/"  # a recipe that reports a checkpoint itself may name models to be kept
        for key in sorted(key for key in keys if key.startswith(own)):
            try:
                self._registry.remove(key)
            except OSError as error:
                log.warning("checkpoint %s cannot be removed: %s", key, error)


def run_job(order: Order, display: Display) -> tuple[JobState, BaseException | None]:
    """Run a recipe to its end: how the job ended, and the exception that ended it.

    Whatever happens, the journal says it, what the recipe made until then is kept, and a worker that was started is
    stopped. Ctrl-C cancels the recipe; a second one ends this process at once. InvalidRequestError if another process
    runs this job.
    """
    with _alone(order.folder):
        journal = Journal(order, display)
        error: BaseException | None = None
        try:
            recipe, values = prepare(order, display)
            asyncio.run(_Job(order, display, journal).run(recipe, values))
        except BaseException as ended:  # noqa: BLE001 - also what is no Exception: Ctrl-C, a recipe's sys.exit()
            error = ended
        if journal.state.ended_at is None:
            journal.settle(error)
        journal.close()
        return journal.state, error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a job, which a job that is resumed while it runs would tear; a process that ends lets go."""
    with contextlib.suppress(OSError):  # the journal says what is wrong with it
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        if folder.is_dir():
            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            if not any(_take(descriptor, wait_s) for wait_s in (0.0, _LOOKING_S)):
                raise InvalidRequestError(f"the job in {folder} runs already; wait for its end, or end it")
        yield


def _take(descriptor: int, wait_s: float) -> bool:
    time.sleep(wait_s)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prepare(order: Order, display: Display) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, with what it needs installed, and its parameters. Errors: InvalidRequestError for bad ones."""
    display.begin("reading the recipe")
    recipe = load(order.name, order.path)
    values = order.resumed.config if order.resumed is not None else {}
    if order.config_file is not None:
        values = overlay(values, read_values(order.config_file))
    values = overlay(values, parse_flags(recipe.config_class, order.flags))
    if recipe.config_class is not None:
        validate_input(recipe.config_class, values)  # before a worker is started for nothing
    return recipe, values


def load(name: str, path: Path) -> Recipe:
    """Import a recipe, with its dependencies installed beside the environment."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    use_dependencies(path, ENTRYPOINT, cache / "harmonia" / "recipes")
    return dataclasses.replace(load_recipe(path, ENTRYPOINT), name=name)


class _Job:
    """The part that needs an event loop."""

    def __init__(self, order: Order, display: Display, journal: Journal) -> None:
        self._order = order
        self._display = display
        self._journal = journal
        self._fleet = LocalFleet(_echo)
        self._interrupts = 0

    async def run(self, recipe: Recipe, values: dict[str, Any]) -> None:
        """Start a worker if there is none, and run the recipe."""
        order = self._order
        os.environ["HARMONY_JOB_ID"] = order.job_id  # for loggers that are made without a context
        restore_data = read_restore_data(order.folder) if order.resumed is not None else None
        with self._interruptible():
            async with self._worker() as address:
                config = RecipeConfig(harmony_url=address, job_id=order.job_id, recipe_name=Path(order.name).stem)
                manager = RecipeContext.from_config(config, job=self._journal, checkpoint_restore_data=restore_data)
                async with manager as context:
                    self._display.begin("")
                    context.client.observe(self._journal.step, self._display.spawn)
                    await run_recipe(context, recipe, values)

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[str]:
        """The address of a worker; one that is started here ends with the context."""
        try:
            self._display.begin(f"connecting to {self._order.address}" if self._order.address else "starting a worker")
            yield self._order.address or await self._start_worker()
        finally:
            self._display.begin("stopping the worker" if self._order.address is None else "")
            await self._fleet.close()
            if self._order.address is None:
                # It ends without waiting for a save that was canceled.
                remove_abandoned(self._order.worker.registry_folder())
                self._journal.sweep()

    async def _start_worker(self) -> str:
        """Through its socket in a private folder nobody else reaches it."""
        await self._fleet.start(self._order.worker)
        async for status in self._fleet.watch():
            if status.state is WorkerState.READY:
                return status.socket
            if status.state is WorkerState.FAILED and status.failure is not None:
                raise status.failure.error()
        raise UnavailableError("the worker is gone")

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let SIGINT, SIGTERM and SIGHUP cancel the present task, and the second of them end the process at once.

        Not through the loop, which may be standing still in the recipe's code when the second one comes.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def interrupt(*_: object) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                self._end_at_once()
            self._display.begin("canceling; Ctrl-C again ends at once")
            loop.call_soon_threadsafe(task.cancel)

        before = {number: signal.signal(number, interrupt) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_at_once(self) -> None:
        self._journal.mark_canceled()
        for status in self._fleet.statuses():
            if status.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(status.pid, signal.SIGKILL)
            shutil.rmtree(Path(status.socket).parent, ignore_errors=True)
        self._display.show_cursor()
        os._exit(INTERRUPTED)


def _echo(line: str) -> None:
    """Pass a worker's log on, except for its routine."""
    if not ROUTINE.match(line):
        sys.stderr.write(line + "\n")
