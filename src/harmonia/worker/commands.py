"""Commands that change instances, from their message to the device's answer.

Each takes its place in the lane of its instance when it begins, prepares (renders, resolves paths) beside the others,
and is given to the device when all before it have been. Tasks begin in the order in which they were made.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import msgspec

from harmonia import log
from harmonia.engine.requests import OptimStepRequest, SaveRequest, TrainRequest
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.models.registry import ModelRegistry
from harmonia.protocol.instances import (
    Clone,
    Dealloc,
    InstanceInfo,
    Load,
    Loaded,
    OptimStep,
    Planned,
    PlanSpawn,
    Save,
    Saved,
    SetOptimStep,
    Spawn,
    Spawned,
    SpawnSpec,
    Stepped,
    Train,
)
from harmonia.protocol.losses import Distillation
from harmonia.protocol.messages import Done, JsonObject
from harmonia.worker.bases import Bases
from harmonia.worker.catalogue import Catalogue
from harmonia.worker.instances import Instance, Instances, Place
from harmonia.worker.link import Advance, Copy, Count, Estimate, Free, Learn, Make, Read, Write
from harmonia.worker.notices import Notices
from harmonia.worker.owners import ChangeAnswer, InstanceChange, Owner
from harmonia.worker.process import Device

_log = log.get_logger(__name__)

InstanceCommand = Train | OptimStep | SetOptimStep | Save | Load | Dealloc


class _Made(msgspec.Struct, frozen=True):
    """What the device says of a new instance."""

    instance: JsonObject
    base: str
    """Path of the base model, whose tokenizer it uses."""
    plan: JsonObject = {}


class Commands:
    """Carries out what changes instances."""

    def __init__(
        self,
        device: Device,
        instances: Instances,
        bases: Bases,
        registry: ModelRegistry,
        catalogue: Catalogue,
        notices: Notices,
    ) -> None:
        self._device = device
        self._instances = instances
        self._bases = bases
        self._registry = registry
        self._catalogue = catalogue
        self._notices = notices
        self._freeing: set[asyncio.Task[None]] = set()

    async def carry_out(self, owner: Owner, command: InstanceChange) -> ChangeAnswer:
        """Do what a client wants of its instances. Takes its place in line before it first waits."""
        if isinstance(command, Spawn):
            return await self._spawn(owner, command)
        instance = self._instances.owned(command.instance, owner)
        place = instance.lane.enter()
        try:
            return await self._in_line(owner, instance, command, place)
        finally:
            place.leave()

    async def plan(self, request: PlanSpawn) -> Planned:
        """Whether a spawn would fit."""
        spec = await self._resolved(request.spec)
        return Planned(id=request.id, plan=await self._device.ask(lambda tag: Estimate(tag, spec)))

    def free(self, owner: Owner, name: str) -> None:
        """Deallocate one instance of a client, if it still has it."""
        instance = self._instances.get(name)
        if instance is not None and instance.owner is owner:
            self._instances.remove(instance)
            self._free(name)

    def free_all(self, owner: Owner) -> None:
        """Deallocate everything of a client that is gone."""
        for instance in self._instances.of(owner):
            self.free(owner, instance.name)

    # ------------------------------------------------------------------------------------------- new instances

    async def _spawn(self, owner: Owner, command: Spawn) -> Spawned:
        with self._instances.reserved(command.name):
            spec = await self._resolved(command.spec)
            progress = partial(owner.progress, command.id)
            value = await self._device.give(lambda tag: Make(tag, command.name, spec), progress)
            return await self._take_in(owner, command, value)

    async def _clone(self, owner: Owner, command: Clone, place: Place) -> Spawned:
        with self._instances.reserved(command.name):
            await place.reached()
            reply = self._device.give(lambda tag: Copy(tag, command.instance, command.name))
            place.leave()
            return await self._take_in(owner, command, await reply)

    async def _take_in(self, owner: Owner, command: Spawn | Clone, value: JsonObject) -> Spawned:
        """Make a new instance known, unless nobody waits for it any more."""
        try:
            made = msgspec.convert(value, _Made)
            info = msgspec.convert({**made.instance, "type": "InstanceInfo"}, InstanceInfo)
            intake = await self._bases.intake(made.base)
            if not owner.wants(command.id):
                raise InvalidRequestError(f"nobody waited for instance {command.name!r}, so it was freed")
        except Exception:
            self._free(command.name)
            raise
        self._instances.add(Instance(info, owner, intake.limited(info.max_seq_len, info.max_batch_size or 0)))
        # Whoever hears of the instance from us may ask the server for it next.
        await self._notices.models_changed()
        return Spawned(id=command.id, instance=info, plan=made.plan)

    def _free(self, name: str) -> None:
        async def free() -> None:
            try:
                await self._device.ask(lambda tag: Free(tag, name))
            except HarmoniaError as error:
                _log.warning("instance %s: %s", name, error)
            await self._notices.models_changed()

        task = asyncio.create_task(free())
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def _resolved(self, spec: SpawnSpec) -> SpawnSpec:
        """With real paths. A saved draft that is to answer stands for its target and itself; in training, and cut
        down to some layers, it is a model like any other."""
        if spec.draft is None and (spec.mode == "training" or spec.keep_layers is not None):
            path = await asyncio.to_thread(self._registry.resolve, spec.path)
            return msgspec.structs.replace(spec, path=str(path))
        pairing = await asyncio.to_thread(self._catalogue.pair, spec.path, spec.draft, spec.num_draft_steps)
        return msgspec.structs.replace(
            spec, path=str(pairing.model), draft=pairing.source, num_draft_steps=pairing.num_steps
        )

    # ---------------------------------------------------------------------------------------- on one instance

    async def _in_line(
        self, owner: Owner, instance: Instance, command: InstanceCommand | Clone, place: Place
    ) -> ChangeAnswer:
        match command:
            case Clone():
                return await self._clone(owner, command, place)
            case Train():
                return await self._train(owner, instance, command, place)
            case OptimStep():
                return await self._optim_step(command, place)
            case SetOptimStep():
                return await self._set_optim_step(command, place)
            case Save():
                return await self._save(command, place)
            case Load():
                return await self._load(command, place)
            case Dealloc():
                return await self._dealloc(instance, command, place)

    async def _train(self, owner: Owner, instance: Instance, command: Train, place: Place) -> Done:
        places, teacher = [place], None
        if isinstance(command.loss, Distillation):
            teacher = self._instances.owned(command.loss.teacher, owner, field="teacher")
            if teacher is not instance:  # the device refuses that; what was asked of a teacher before comes before
                places.append(teacher.lane.enter())
        try:
            if teacher is not None:
                await self._bases.require_same_tokenizer(instance, teacher)
            samples = [await instance.intake.sample(side) for side in command.sides]
            sides = tuple(sample.arrays() for sample in samples)
            request = TrainRequest(instance=command.instance, sides=sides, loss=command.loss)
            for each in places:
                await each.reached()
            reply = self._device.give(lambda tag: Learn(tag, request))
        finally:
            for each in places:
                each.leave()
        await reply
        return Done(id=command.id)

    async def _optim_step(self, command: OptimStep, place: Place) -> Stepped:
        request = OptimStepRequest(
            instance=command.instance,
            lr=command.lr,
            wd=command.wd,
            max_grad_norm=command.max_grad_norm,
            skip_nan_gradients=command.skip_nan_gradients,
        )
        await place.reached()
        reply = self._device.give(lambda tag: Advance(tag, request))
        place.leave()
        value = await reply
        self._notices.models_change()
        return msgspec.convert({**value, "type": "Stepped", "id": command.id}, Stepped)

    async def _save(self, command: Save, place: Place) -> Saved:
        folder = self._registry.path_for(command.key)
        request = SaveRequest(
            instance=command.instance,
            folder=str(folder),
            inference_only=command.inference_only,
            merged=command.merged,
            info=command.info,
        )
        await place.reached()
        reply = self._device.give(lambda tag: Write(tag, request))
        place.leave()
        value = await reply
        return msgspec.convert(
            {**value, "type": "Saved", "id": command.id, "key": command.key, "path": str(folder)}, Saved
        )

    async def _load(self, command: Load, place: Place) -> Loaded:
        path: Path = await asyncio.to_thread(self._registry.resolve, command.path)
        await place.reached()
        reply = self._device.give(lambda tag: Read(tag, command.instance, str(path)))
        place.leave()
        value = await reply
        self._notices.models_change()
        return msgspec.convert({**value, "type": "Loaded", "id": command.id}, Loaded)

    async def _set_optim_step(self, command: SetOptimStep, place: Place) -> Done:
        await place.reached()
        reply = self._device.give(lambda tag: Count(tag, command.instance, command.step))
        place.leave()
        await reply
        return Done(id=command.id)

    async def _dealloc(self, instance: Instance, command: Dealloc, place: Place) -> Done:
        await place.reached()
        self._instances.remove(instance)
        await self._device.ask(lambda tag: Free(tag, command.instance))
        await self._notices.models_changed()
        return Done(id=command.id)
