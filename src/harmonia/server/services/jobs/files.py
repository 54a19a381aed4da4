"""What lies on the disk for jobs, and who removes it when.

A job's folder holds its log, its input, and what its recipe works with. Checkpoints have their weights in the registry
of models. When a job has ended only the log stays; the weights of checkpoints stay while the job may be resumed, that
is until it is deleted, unless it completed. Deleting a job removes everything.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path

from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError
from harmonia.fleet.files import remove_models
from harmonia.log import get_logger

log = get_logger(__name__)

REQUEST = "GRACEFUL_EXIT"
"""The name of a file that asks a training for a checkpoint, in the folder of its stage."""
_LOG, _WORK, _CHECKPOINTS, _ARGUMENTS = "log.txt", "work", "checkpoints", "args.json"


class JobFiles:
    """The folders of all jobs."""

    def __init__(self, config: ControlConfig) -> None:
        self._registry = config.registry
        self._root = config.folder / "jobs"

    def folder(self, job_id: uuid.UUID) -> Path:
        """A job's own."""
        return self._root / str(job_id)

    def log(self, job_id: uuid.UUID) -> Path:
        """What a job and its worker write."""
        return self.folder(job_id) / _LOG

    def arguments(self, job_id: uuid.UUID) -> Path:
        """The recipe's input."""
        return self.folder(job_id) / _ARGUMENTS

    def work(self, job_id: uuid.UUID) -> Path:
        """Where the recipe lies and works."""
        return self.folder(job_id) / _WORK

    def checkpoints(self, job_id: uuid.UUID) -> Path:
        """Where trainers keep what they say of checkpoints; each job has a folder there."""
        return self.folder(job_id) / _CHECKPOINTS

    def note(self, job_id: uuid.UUID, text: str) -> None:
        """Add a line of the server's to the log."""
        self.folder(job_id).mkdir(parents=True, exist_ok=True)
        with self.log(job_id).open("a", encoding="utf-8") as file:
            file.write(f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%S}] {text}\n")

    def ask_for_checkpoint(self, job_id: uuid.UUID) -> bool:
        """Ask every stage that began; whether there is any, so that it is worth waiting."""
        stages = self._stages(job_id)
        for stage in stages:
            (stage / REQUEST).touch()
        return bool(stages)

    def drop_requests(self, job_id: uuid.UUID) -> None:
        """Take back what was asked for, or a job that goes on would stop at its first step."""
        for stage in self._stages(job_id):
            (stage / REQUEST).unlink(missing_ok=True)

    async def finish(self, job_id: uuid.UUID, *, is_complete: bool) -> None:
        """Remove what a job that has ended needs no longer. is_complete: so that nobody resumes it."""
        if is_complete:
            await self._remove_weights(job_id)
        # The folder of the work goes last: while it is there, something is left to do.
        for folder in (self.checkpoints(job_id), self.work(job_id)):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self.arguments(job_id).unlink(missing_ok=True)

    async def forget(self, job_id: uuid.UUID) -> None:
        """Remove everything of a job that was deleted."""
        await self._remove_weights(job_id)
        await asyncio.to_thread(shutil.rmtree, self.folder(job_id), ignore_errors=True)

    def known(self) -> list[uuid.UUID]:
        """Jobs that have a folder."""
        names = [folder.name for folder in self._root.iterdir()] if self._root.is_dir() else []
        return [job_id for job_id in map(_job_id, names) if job_id is not None]

    def is_finished(self, job_id: uuid.UUID) -> bool:
        """Whether `finish` was done."""
        return not self.work(job_id).exists()

    async def _remove_weights(self, job_id: uuid.UUID) -> None:
        try:
            await remove_models(f"{_CHECKPOINTS}/{job_id}/", self._registry)
        except HarmoniaError as error:
            log.warning("weights of checkpoints of job %s stay: %s", job_id, error.message)

    def _stages(self, job_id: uuid.UUID) -> list[Path]:
        return list((self.checkpoints(job_id) / str(job_id)).glob("stage_*"))


def _job_id(name: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(name)
    except ValueError:
        return None
