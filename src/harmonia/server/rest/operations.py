"""`/health` and `/metrics` of the control plane: open to everyone, for load balancers and scrapers."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from harmonia.errors import UnavailableError
from harmonia.server.services.services import Services
from harmonia.server.services.telemetry import Metrics, WorkerReport


def make_operations_router(services: Services, metrics: Metrics) -> APIRouter:
    """The routes for a main or an internal port."""
    router = APIRouter(tags=["operations"])

    @router.get("/health")
    async def health() -> Response:
        """200 when requests will be answered, 503 while the database does not answer."""
        try:
            await services.database.check()
        except UnavailableError as error:
            services.database.usage.failed(error)
            return JSONResponse({"status": "unavailable", "database": "no answer"}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready", "database": "ok"})

    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process runs; what it depends on is not looked at."""
        return JSONResponse({"status": "live"})

    @router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def show_metrics() -> Response:
        """Everything that is counted, in Prometheus' text format."""
        reports = [
            WorkerReport(
                replica.replica, replica.backbone, replica.keys, stats, services.allotments.pool_of(replica.replica)
            )
            for replica, stats in await services.serving.router.stats()
        ]
        text = metrics.render(reports) + generate_latest(services.database.usage.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
