"""What a running recipe holds: the client, the job, the folders."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from harmonia.client.connect import HarmonyClient, get_client
from harmonia.client.evaluation import save_detailed_eval_table, score_table
from harmonia.client.grades import EvalSample
from harmonia.client.identifiers import uuid_v7
from harmonia.client.recipe.config import RecipeConfig, RecipeConfigCli
from harmonia.client.recipe.control_plane import ControlPlane
from harmonia.client.recipe.http_plane import HttpControlPlane
from harmonia.client.recipe.journal_state import restore_data
from harmonia.client.recipe.notifiers import JobNotifier
from harmonia.client.recipe.platform import ControlPlaneJobNotifier
from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.errors import UnavailableError

_HEARTBEAT_S = 10.0


class CheckpointArtifactMetadata(BaseModel):
    """What the control plane keeps of a checkpoint."""

    model_config = ConfigDict(protected_namespaces=())

    step: int
    completion_percentage: float
    model_checkpoint_names: dict[str, str] = {}
    user_data: dict[str, Any] | None = None


class RecipeContext:
    """Everything that a recipe works with. Made by `from_config` or `load`, never directly.

    `async with RecipeContext.from_config(config) as ctx:` tells the job how it ended and frees the models at the end;
    `ctx = await RecipeContext.from_config(config)` leaves both to you: `ctx.job.complete()`, `ctx.close()`.
    """

    client: HarmonyClient
    """Connected to the worker of the job."""
    job: JobNotifier
    """Where the recipe reports stages, progress and artifacts."""
    control_plane: ControlPlane | None
    """None where the worker is reached directly."""
    checkpoint_restore_data: dict[str, Any] | None
    """The state of the trainers from which to resume."""

    def __init__(self, config: RecipeConfig, *, _internal: bool = False) -> None:
        if not _internal:
            raise TypeError("a RecipeContext is made by RecipeContext.from_config(config) or RecipeContext.load()")
        self.config = config
        self.control_plane = None
        self.checkpoint_restore_data = None

    @classmethod
    def from_config(
        cls,
        config: RecipeConfig,
        *,
        job: JobNotifier | None = None,
        checkpoint_restore_data: dict[str, Any] | None = None,
    ) -> RecipeContextManager:
        """Connect to the worker; await it, or use it with `async with`.

        job: where to report; the control plane or standard output by default. checkpoint_restore_data: trainers' state
        from an earlier run.

        With `control_plane_url`, `project` and a key the job reports to the control plane, which also knows models and
        data sets by key. UnavailableError if the address is missing, WorkerLostError if the worker does not answer.
        """
        return RecipeContextManager(config, job, checkpoint_restore_data)

    @classmethod
    async def load(cls) -> RecipeContext:
        """`from_config` with the command line and the environment (`RecipeConfigCli`)."""
        return await cls.from_config(RecipeConfigCli())  # type: ignore[call-arg]  # its fields come from elsewhere

    @property
    def working_dir(self) -> Path:
        """The folder for everything that jobs download and make; made when first asked for, as the others are."""
        chosen = self.config.working_dir
        return _made(Path(chosen) if chosen else Path(tempfile.gettempdir()) / "adaptive")

    @property
    def recipes_dir(self) -> Path:
        """The folder for this job's recipe."""
        return _made(self.working_dir / f"job_{self.job.job_id}" / "recipes")

    @property
    def datasets_dir(self) -> Path:
        """The folder for datasets, which jobs share."""
        return _made(self.working_dir / "datasets")

    @property
    def artifacts_dir(self) -> Path:
        """The folder for files that this job makes."""
        return _made(self.working_dir / f"job_{self.job.job_id}" / "artifacts")

    def close(self) -> asyncio.Future[None]:
        """Free the models, disconnect, and let go of the job. It begins at once; await the result to see its end."""
        self.job.close()
        if isinstance(self.control_plane, HttpControlPlane):
            self.control_plane.close()
        return self.client.close()

    @staticmethod
    def log_eval_result(eval_samples: Sequence[EvalSample]) -> None:
        """Print scores by model and grader; write all samples to `adaptive_eval_samples` beside the caller's file."""
        headers, rows = score_table(eval_samples).export()
        shown = RichTable(*headers)
        for row in rows:
            shown.add_row(*map(escape, row))
        folder = save_detailed_eval_table(eval_samples)
        console = Console()
        console.print(shown)
        console.print(f"all samples: {folder / 'evaluation_samples.html'}", soft_wrap=True, markup=False)


class RecipeContextManager:
    """What `RecipeContext.from_config` returns: awaitable, and an async context manager."""

    def __init__(
        self,
        config: RecipeConfig,
        job: JobNotifier | None = None,
        checkpoint_restore_data: dict[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._job = job
        self._restore_data = checkpoint_restore_data
        self._context: RecipeContext | None = None

    def __await__(self) -> Generator[Any, None, RecipeContext]:
        return self._open().__await__()

    async def __aenter__(self) -> RecipeContext:
        self._context = await self._open()
        return self._context

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._context is not None
        try:
            self._context.job.settle(error)
        finally:
            await self._context.close()

    async def _open(self) -> RecipeContext:
        """A context whose job runs. A job that cannot begin is told why."""
        plane, job_id = _control_plane(self._config), self._config.job_id or uuid_v7()
        job = self._job or (StdoutJobNotifier(job_id) if plane is None else ControlPlaneJobNotifier(plane, job_id))
        context = RecipeContext(self._config, _internal=True)
        context.job = job
        context.control_plane = plane
        context.checkpoint_restore_data = self._restore_data
        try:
            _refuse_missing_plane(self._config)
            if plane is not None and self._config.resume_checkpoint_artifact_id:
                metadata = plane.get_checkpoint_metadata(self._config.resume_checkpoint_artifact_id)
                told = metadata["user_data"]
                context.checkpoint_restore_data = restore_data(told) or told  # recipes may tell what they like
            job.start_heartbeat(_HEARTBEAT_S)
            context.client = await _connect(self._config, job.job_id)
            job.mark_running()
        except BaseException as error:
            job.__exit__(type(error), error, error.__traceback__)
            raise
        return context


async def _connect(config: RecipeConfig, job_id: str) -> HarmonyClient:
    return await get_client(
        config.harmony_url,
        num_gpus=config.num_gpus,
        api_key=config.api_key,
        project=config.project,
        compute_pool=config.compute_pool,
        job_id=job_id,
        name=config.name or config.recipe_name,
    )


def _control_plane(config: RecipeConfig) -> HttpControlPlane | None:
    """The control plane that the config names."""
    key = config.control_plane_api_token or config.api_key
    if not (config.control_plane_url and config.project and key):
        return None
    return HttpControlPlane(config.control_plane_url, key, config.project)


def _refuse_missing_plane(config: RecipeConfig) -> None:
    """UnavailableError where the config needs a control plane and does not say where it is."""
    if config.control_plane_url:
        return
    if config.project and (config.control_plane_api_token or config.api_key):
        raise UnavailableError(
            f"project {config.project!r} and a key ask for a control plane; give its address as `control_plane_url`, "
            "or leave out `project`, or `api_key` and `control_plane_api_token`: a worker reached directly needs none"
        )
    if config.resume_checkpoint_artifact_id:
        raise UnavailableError(
            f"resume_checkpoint_artifact_id {config.resume_checkpoint_artifact_id!r} asks for a control plane; give "
            "its address as `control_plane_url`, or pass checkpoint_restore_data to RecipeContext.from_config"
        )


def _made(folder: Path) -> Path:
    os.makedirs(folder, exist_ok=True)
    return folder
