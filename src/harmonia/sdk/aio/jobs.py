"""Jobs and what they made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonia.errors import DeadlineExceededError, EntityNotFoundError
from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.call import REST
from harmonia.sdk.inputs import ArtifactFilter, JobFilter, Page, checked
from harmonia.sdk.operations import jobs
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.jobs import Artifact, Job, JobPage, SearchResult
from harmonia.sdk.waiting import Deadline

PAGE_SIZE = 100


class AsyncJobs(AsyncResource):
    """`adaptive.jobs`: runs of recipes, by id."""

    async def run(
        self,
        recipe_key: str,
        num_gpus: int = 1,
        args: Mapping[str, Any] | None = None,
        name: str | None = None,
        project: str | None = None,
        compute_pool: str | None = None,
    ) -> Job:
        """Start a recipe; `args` must match its schema."""
        body = given(
            recipe=recipe_key,
            project=self._project(project),
            args=dict(args or {}),
            numGpus=num_gpus,
            name=name,
            computePool=compute_pool,
        )
        return await self._transport.execute(jobs.CREATE_JOB, input=body)

    async def get(self, job_id: str) -> Job | None:
        """One job."""
        return await self._transport.execute(jobs.JOB, id=job_id)

    async def list(
        self, project: str | None = None, filter: JobFilter | None = None, page: Page | None = None
    ) -> JobPage:
        """The newest jobs of a project, or of all that the caller may read; the first 100 unless `page` says else."""
        wanted = checked(filter or {}, JobFilter, "filter") | given(project=project)
        shown = checked(page or {"first": PAGE_SIZE}, Page, "page")
        return await self._transport.execute(jobs.JOBS, page=shown, filter=wanted, order=[])

    async def search(self, query: str, project: str | None = None) -> SearchResult:
        """Jobs and what they made, by a part of a name, the key of a recipe, or the e-mail address of who ran it."""
        return await self._transport.execute(jobs.SEARCH, project=self._project(project), input={"query": query})

    async def wait(
        self,
        job: Job | str,
        on_progress: Callable[[Job], None] | None = None,
        timeout_s: float | None = None,
    ) -> Job:
        """Until a job has ended, one way or another: `status` says which.

        on_progress: called with the job whenever it has changed. timeout_s: DeadlineExceededError after so many
        seconds, while the job goes on.
        """
        job_id = job if isinstance(job, str) else job.id
        deadline, before = Deadline(timeout_s), None
        while True:
            found = await self.get(job_id)
            if found is None:
                raise EntityNotFoundError(f"Job {job_id!r} does not exist", entity="job")
            if on_progress is not None and found != before:
                on_progress(found)
            if found.has_ended:
                return found
            if deadline.has_passed:
                raise DeadlineExceededError(
                    f"job {job_id} is {found.status} after {timeout_s:g} s; it goes on", limit="timeout_s"
                )
            before = found
            await asyncio.sleep(deadline.pause())

    async def logs(self, job_id: str) -> str:
        """What a job wrote so far."""
        content = await self._transport.download(f"{REST}/jobs/{job_id}/logs", None)
        return content.decode("utf-8", "replace")

    async def cancel(self, job_id: str) -> Job:
        """Stop a job; its GPUs are free soon after."""
        return await self._transport.execute(jobs.CANCEL_JOB, id=job_id)

    async def update(self, job_id: str, name: str) -> Job:
        """Call a job otherwise."""
        return await self._transport.execute(jobs.UPDATE_JOB, id=job_id, input={"name": name})

    async def delete(self, job_id: str) -> bool:
        """Forget a job that has ended."""
        return await self._transport.execute(jobs.DELETE_JOB, id=job_id)


class AsyncArtifacts(AsyncResource):
    """`adaptive.artifacts`: what jobs made; `Job.artifacts` names those of one."""

    async def list(
        self, project: str | None = None, filter: ArtifactFilter | None = None, limit: int = PAGE_SIZE, offset: int = 0
    ) -> Sequence[Artifact]:
        """Those of a project, the newest first: `limit` of them, at most 1000, without the first `offset`."""
        wanted = checked(filter or {}, ArtifactFilter, "filter")
        chosen = self._project(project)
        return await self._transport.execute(jobs.ARTIFACTS, project=chosen, filter=wanted, limit=limit, offset=offset)

    async def promote(self, artifact_id: str, models: Mapping[str, str]) -> Job:
        """Make models of a checkpoint, which would go with its job.

        models: names of those that shall be, by the keys of the models that were trained; see `metadata` of the
        artifact. The keys of the new ones are made of their names; the job that does it names them in its artifacts.
        """
        wanted = [{"modelKey": key, "name": name} for key, name in models.items()]
        return await self._transport.execute(jobs.PROMOTE, input={"artifactId": artifact_id, "models": wanted})

    async def download(self, artifact_id: str, to: str | Path | None = None) -> bytes:
        """The content of an artifact; kept in the file `to` if one is named, and then empty here."""
        return await self._transport.download(f"{REST}/artifacts/{artifact_id}/download", to)
