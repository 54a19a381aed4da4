"""What a worker answers: generation, scores, embeddings, instances, adapters, sessions, questions about itself."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import msgspec

from harmonia.config import WorkerConfig
from harmonia.errors import HarmoniaError, InvalidRequestError, UnknownModelError
from harmonia.models.registry import ModelRegistry
from harmonia.models.tokenizer import ModelTokenizer
from harmonia.protocol.instances import (
    DescribeModel,
    Detokenize,
    Detokenized,
    DetokenizeIds,
    PlainText,
    PlanSpawn,
    Score,
    TokenIds,
    Tokenize,
    Tokenized,
    TokenizeText,
)
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
from harmonia.worker.bases import Bases
from harmonia.worker.catalogue import Catalogue
from harmonia.worker.commands import Commands
from harmonia.worker.connection import Reply
from harmonia.worker.instances import Instance, Instances, Lane
from harmonia.worker.intake import Intake, Limits
from harmonia.worker.link import Attach, Detach, EndSession, Inspect, Measure
from harmonia.worker.notices import Notices
from harmonia.worker.owners import Owners
from harmonia.worker.process import Device
from harmonia.worker.streams import Client, Streams, Work


class WorkerService:
    """One device process and the tokenizers of its models, at the disposal of all connections."""

    def __init__(
        self, config: WorkerConfig, device: Device, description: JsonObject, tokenizer: ModelTokenizer | None
    ) -> None:
        """description: what the device said when it was ready. tokenizer: of the model served from the start."""
        self._config = config
        self._registry = ModelRegistry(config.registry_folder())
        self._catalogue = Catalogue(self._registry)
        self._device = device
        # Two threads each: a slow grammar must not keep others waiting, and more would take cores from the engine.
        self._long_jobs = ThreadPoolExecutor(2, thread_name_prefix="intake")
        self._masks = ThreadPoolExecutor(2, thread_name_prefix="masks")
        self.streams = Streams(device, self._masks)
        self._served: Intake | None = None
        if tokenizer is not None:
            self._served = self._make_intake(msgspec.convert(description, Limits), tokenizer)
        self._notices = Notices()
        self._instances = Instances()
        self._commands = Commands(
            device,
            self._instances,
            Bases(self._make_intake),
            self._registry,
            self._catalogue,
            self._notices,
        )
        self.owners = Owners(self._commands)
        device.on_outputs = self.streams.take

    def _make_intake(self, limits: Limits, tokenizer: ModelTokenizer) -> Intake:
        return Intake(self._config, limits, tokenizer, self.streams, self._long_jobs)

    # ------------------------------------------------------------------------------------------- sequences

    async def begin(self, request: Generate | Embed | Score, client: Client, arrival_s: float) -> Work:
        """Start a request; its messages go to the client."""
        if isinstance(request, Score):
            return await self._score(request, client, arrival_s)
        intake = self._intake(request.model)
        if isinstance(request, Embed):
            return await intake.embed(request, client, arrival_s)
        instance = self._instances.get(request.model)
        if instance is not None and instance.info.is_scalar:
            message = f"instance {request.model!r} is a scoring model: it gives scores and cannot write"
            raise InvalidRequestError(message, field="model")
        return await intake.generate(request, client, arrival_s)

    async def _score(self, request: Score, client: Client, arrival_s: float) -> Work:
        """A score reads the weights that the commands sent before it have made."""
        instance = self._instances.get(request.instance)
        _check_head(request, instance)
        place = (instance.lane if instance is not None else Lane()).enter()
        try:
            return await self._intake(request.instance).score(request, client, arrival_s, place.reached)
        finally:
            place.leave()

    def _intake(self, model: str) -> Intake:
        instance = self._instances.get(model)
        if instance is not None:
            return instance.intake
        if self._served is None:
            raise UnknownModelError(f"this worker has no instance {model!r}; spawn it first", field="model")
        return self._served  # the engine knows the keys of adapters, and refuses all others

    # -------------------------------------------------------------------------------------------- commands

    async def answer(self, command: ClientMessage) -> Reply:
        """Obey a command and say so."""
        match command:
            case LoadAdapter():
                path = str(await asyncio.to_thread(self._registry.resolve, command.path))
                await self._device.ask(lambda tag: Attach(tag, command.key, path))
                await self._notices.models_changed()
            case UnloadAdapter():
                await self._device.ask(lambda tag: Detach(tag, command.key))
                await self._notices.models_changed()
            case CloseSession():
                self._device.send(EndSession(command.session_id))
            case Describe():
                return await self._describe(command)
            case GetStats():
                return msgspec.convert({**await self._device.ask(Measure), "type": "Stats", "id": command.id}, Stats)
            case PlanSpawn():
                return await self._commands.plan(command)
            case DescribeModel():
                return await asyncio.to_thread(self._catalogue.describe, command)
            case Tokenize() | TokenizeText() | Detokenize() | DetokenizeIds():
                return await self._text(command, self._intake(command.instance))
            case _:
                raise InvalidRequestError(f"{type(command).__name__} is no command")
        return Done(id=command.id)

    async def _text(self, command: Tokenize | TokenizeText | Detokenize | DetokenizeIds, intake: Intake) -> Reply:
        match command:
            case Tokenize():
                return Tokenized(id=command.id, thread=await intake.tokenize(command.thread))
            case TokenizeText():
                return TokenIds(id=command.id, token_ids=await intake.tokenize_text(command.text))
            case Detokenize():
                return Detokenized(id=command.id, thread=intake.threads.detokenize(command.thread))
            case DetokenizeIds():
                return PlainText(id=command.id, text=intake.text(command.token_ids))

    async def _describe(self, command: Describe) -> Description:
        async def describe() -> Description:
            own = {
                "type": "Description",
                "id": command.id,
                "protocol_version": PROTOCOL_VERSION,
                "has_chat_template": self._served is not None and self._served.has_chat_template,
                "revision": self._notices.revision,
            }
            return msgspec.convert({**await self._device.ask(Inspect), **own}, Description)

        if command.unlike is None:
            return await describe()
        return await self._notices.unlike(command.unlike, describe)

    def fail_all(self, error: HarmoniaError) -> None:
        """End everything in progress with an error."""
        self.streams.fail_all(error)
        self.owners.close(error)

    def close(self) -> None:
        """Let the threads end."""
        self._long_jobs.shutdown(wait=False, cancel_futures=True)
        self._masks.shutdown(wait=False, cancel_futures=True)


def _check_head(request: Score, instance: Instance | None) -> None:
    is_scalar = instance is not None and instance.info.is_scalar
    if is_scalar != (request.what != "logprobs"):
        kind = "scoring model: it gives scores, not log-probabilities"
        other = "language model: it gives log-probabilities, not scores; spawn it with a scalar head"
        message = f"instance {request.instance!r} is a {kind if is_scalar else other}"
        raise InvalidRequestError(message, field="what")
