"""What a worker answers: generation, embeddings, adapters, sessions, questions about itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from harmonia.config import WorkerConfig
from harmonia.errors import InvalidRequestError
from harmonia.models.tokenizer import ModelTokenizer
from harmonia.protocol.messages import (
    PROTOCOL_VERSION,
    ClientMessage,
    CloseSession,
    Describe,
    Description,
    Done,
    Embed,
    Generate,
    GetStats,
    JsonObject,
    LoadAdapter,
    Stats,
    UnloadAdapter,
)
from harmonia.worker.connection import Reply
from harmonia.worker.intake import Intake, Limits
from harmonia.worker.link import Attach, Detach, EndSession, Inspect, Measure
from harmonia.worker.process import Device
from harmonia.worker.streams import Client, Streams, Work


class WorkerService:
    """One device process and its tokenizer, at the disposal of all connections."""

    def __init__(
        self, config: WorkerConfig, device: Device, description: JsonObject, tokenizer: ModelTokenizer
    ) -> None:
        """description: what the device said when it was ready."""
        self._device = device
        self._has_chat_template = tokenizer.chat_template is not None
        # Two threads each: a slow grammar must not keep others waiting, and more would take cores from the engine.
        self._long_jobs = ThreadPoolExecutor(2, thread_name_prefix="intake")
        self._masks = ThreadPoolExecutor(2, thread_name_prefix="masks")
        self.streams = Streams(device, self._masks)
        limits = msgspec.convert(description, Limits)
        self._intake = Intake(config, limits, tokenizer, self.streams, self._long_jobs)
        device.on_outputs = self.streams.take

    async def begin(self, request: Generate | Embed, client: Client, arrival_s: float) -> Work:
        """Start a request; its messages go to the client."""
        if isinstance(request, Generate):
            return await self._intake.generate(request, client, arrival_s)
        return await self._intake.embed(request, client, arrival_s)

    async def answer(self, command: ClientMessage) -> Reply:
        """Obey a command and say so."""
        match command:
            case LoadAdapter():
                await self._device.ask(lambda tag: Attach(tag, command.key, command.path))
            case UnloadAdapter():
                await self._device.ask(lambda tag: Detach(tag, command.key))
            case CloseSession():
                self._device.send(EndSession(command.session_id))
            case Describe():
                return await self._describe(command.id)
            case GetStats():
                return msgspec.convert({**await self._device.ask(Measure), "type": "Stats", "id": command.id}, Stats)
            case _:
                raise InvalidRequestError(f"{type(command).__name__} is no command")
        return Done(id=command.id)

    async def _describe(self, request_id: str) -> Description:
        own = {
            "type": "Description",
            "id": request_id,
            "protocol_version": PROTOCOL_VERSION,
            "has_chat_template": self._has_chat_template,
        }
        return msgspec.convert({**await self._device.ask(Inspect), **own}, Description)

    def close(self) -> None:
        """Let the threads end."""
        self._long_jobs.shutdown(wait=False, cancel_futures=True)
        self._masks.shutdown(wait=False, cancel_futures=True)
