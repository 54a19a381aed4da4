"""What integrations are told without anybody asking for it: jobs that ended, and models that are served or cannot be.

Topics are `project:KEY:job:completed`, `...:job:failed` and `...:job:canceled`, `project:KEY:model:online` and
`...:model:error`. They concern the teams of the project, and a job also whoever created it.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.jobs import Job, JobArtifact, JobStage, progress_of
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.moments import moment_text
from harmonia.server.services.notifications.notifications import Notifications
from harmonia.server.services.notifications.topics import Scope

TOLD = ("ONLINE", "ERROR")
"""States of models that are told of; the others are on the way to one of these, or what somebody asked for."""
_JOB_STATUS = {"COMPLETED": "DONE", "FAILED": "ERROR", "CANCELED": "CANCELLED"}
"""The words that messages about jobs use."""


async def announce_job(session: AsyncSession, notifications: Notifications, job: Job) -> None:
    """Tell that a job ended, in the transaction that ends it. Imports are nobody's topic: they have no project."""
    if job.project_id is None:
        return
    project = await session.get_one(Project, job.project_id)
    stages = (await session.execute(select(JobStage).where(JobStage.job_id == job.id))).scalars().all()
    made = select(JobArtifact).where(JobArtifact.job_id == job.id).order_by(JobArtifact.created_at)
    outputs = [
        {"id": str(item.id), "name": item.name, "kind": item.kind} for item in (await session.execute(made)).scalars()
    ]
    payload = {
        "jobId": str(job.id),
        "jobName": job.name,
        "jobStatus": _JOB_STATUS[job.status],
        "jobProgress": progress_of(job, stages),
        "jobStartedAt": moment_text(job.started_at or job.created_at),
        "jobEndedAt": None if job.ended_at is None else moment_text(job.ended_at),
        "projectId": str(job.project_id),
        "jobInput": job.args,
        "jobOutputs": outputs,
        "jobError": job.error,
    }
    scope = Scope(users=(job.created_by,), project=project.id)
    await notifications.publish(f"project:{project.key}:job:{job.status.lower()}", scope, payload, session)


async def announce_model(session: AsyncSession, notifications: Notifications, model: Model) -> None:
    """Tell every project that wants a model online how it fares now, in the transaction that notes it."""
    query = (
        select(Project)
        .join(ModelService, ModelService.project_id == Project.id)
        .where(ModelService.model_id == model.id, ModelService.desired_online, ModelService.deleted_at.is_(None))
        .where(Project.archived_at.is_(None))
        .order_by(Project.key)
    )
    for project in (await session.execute(query)).scalars().all():
        payload = {
            "modelId": str(model.id),
            "modelKey": model.key,
            "modelName": model.name,
            "modelStatus": model.online,
            "modelError": model.error,
            "projectId": str(project.id),
        }
        topic = f"project:{project.key}:model:{model.online.lower()}"
        await notifications.publish(topic, Scope(project=project.id), payload, session)
