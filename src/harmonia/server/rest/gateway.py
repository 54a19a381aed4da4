"""The way to a job's worker: WebSockets on this server's port, checked here, then passed on frame by frame."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from harmonia.errors import EntityNotFoundError, HarmoniaError, PermissionDeniedError, UnavailableError
from harmonia.log import get_logger
from harmonia.server.rest.errors import response_to
from harmonia.server.services.access import bearer
from harmonia.server.services.services import Services

log = get_logger(__name__)

router = APIRouter()
_GOING_AWAY = 1001
_NO_CODE = (1005, 1006, 1015)
"""What stands for an end without a code must not be sent as one."""


@router.websocket("/ws")
async def relay(client: WebSocket) -> None:
    """Connect a job, or its creator, with the job's worker, which the header `Adaptive-Job-Id` names."""
    try:
        worker = await _connected(await _worker_of(client))
    except HarmoniaError as error:
        log.info("a connection to a worker was refused: %s", error.message)
        await client.send_denial_response(response_to(error))
        return
    async with worker:
        await client.accept()
        await _pump(client, worker)


async def _worker_of(client: WebSocket) -> str:
    services: Services = client.app.state.services
    caller = await services.access.caller(bearer(client.headers.get("authorization")))
    try:
        job_id = uuid.UUID(client.headers.get("adaptive-job-id", ""))
    except ValueError:
        raise PermissionDeniedError("name the job whose worker is meant in the header Adaptive-Job-Id") from None
    job = await services.jobs.find(caller, job_id)
    if job is None:
        raise EntityNotFoundError(f"Job {job_id} does not exist", entity="job")
    if caller.job_id != job_id and (caller.job_id is not None or caller.user_id != job.job.created_by):
        raise PermissionDeniedError(f"only job {job_id} itself and its creator may use its worker")
    socket = services.job_runner.worker_socket(job_id)
    if socket is None:
        raise UnavailableError(f"job {job_id} has no worker: it does not run")
    return socket


async def _connected(socket: str) -> ClientConnection:
    """UnavailableError while a worker cannot be reached, as when it is started again: trying later may help."""
    try:
        return await unix_connect(
            socket, "ws://worker/", compression=None, max_size=None, ping_interval=None, proxy=None
        )
    except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
        raise UnavailableError(f"the worker at {socket} does not answer: {error or type(error).__name__}") from error


async def _pump(client: WebSocket, worker: ClientConnection) -> None:
    """Pass frames on in both directions until one side ends, then end the other."""
    directions = {asyncio.create_task(_to_worker(client, worker)), asyncio.create_task(_to_client(client, worker))}
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in directions:
            task.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
        code = worker.close_code
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has gone
            await client.close(_GOING_AWAY if code is None or code in _NO_CODE else code, worker.close_reason or None)


async def _to_worker(client: WebSocket, worker: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = await client.receive()
            if message["type"] == "websocket.disconnect":
                return
            content = message.get("bytes")
            await worker.send(content if content is not None else message["text"])


async def _to_client(client: WebSocket, worker: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed, RuntimeError, WebSocketDisconnect):
        async for frame in worker:
            if isinstance(frame, bytes):
                await client.send_bytes(frame)
            else:
                await client.send_text(frame)
