"""`/health` and `/metrics`: open to everyone, for load balancers and scrapers."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from harmonia.protocol.fleet import WorkerState, WorkerStatus
from harmonia.router.router import LOADING_RETRY_S
from harmonia.server.rest.context import Api, json_response
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.schemas import Health
from harmonia.server.rest.schemas.models import WorkerHealth
from harmonia.server.services.telemetry import WorkerReport

router = APIRouter(tags=["operations"])


@router.get("/health", **describe(None, Health, unready=Health))
async def health(api: Api) -> Response:
    """200 when requests will be answered, 503 with the state of each worker until then."""
    statuses = api.router.statuses()
    failed = any(status.state is WorkerState.FAILED for status in statuses)
    state = "ready" if api.router.ready else "failed" if failed else "loading"
    models = [model.key for model in api.router.models()]
    response = json_response(Health(status=state, models=models, workers=[_worker(status) for status in statuses]))
    if state != "ready":
        response.status_code = 503
        response.headers["retry-after"] = str(LOADING_RETRY_S)
    return response


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(api: Api) -> Response:
    """Everything that is counted, in Prometheus' text format."""
    reports = [
        WorkerReport(replica.replica, replica.backbone, replica.keys, stats)
        for replica, stats in await api.router.stats()
    ]
    return Response(api.metrics.render(reports), media_type=CONTENT_TYPE_LATEST)


def _worker(status: WorkerStatus) -> WorkerHealth:
    failure = status.failure
    return WorkerHealth(
        replica=status.replica,
        model=status.key,
        state=str(status.state),
        restarts=status.restarts,
        progress=status.progress,
        error=None if failure is None else {"code": failure.code, "message": failure.message},
    )
