"""The instances of a worker as its I/O process knows them: whose they are, and the order of what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harmonia.errors import InvalidRequestError, PermissionDeniedError, UnknownModelError
from harmonia.protocol.instances import InstanceInfo
from harmonia.worker.intake import Intake


class Place:
    """A place in a queue: reached when everyone before has left."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def reached(self) -> None:
        """Wait for those before."""
        if self._before is not None:
            await asyncio.shield(self._before)

    def leave(self) -> None:
        """Let the next one go, once those before have gone; may be called twice."""
        if self.left.done():
            return
        if self._before is None or self._before.done():
            self.left.set_result(None)
        else:
            self._before.add_done_callback(lambda _: self.leave())


class Lane:
    """Commands on one instance reach the device in the order in which they came, however long each takes to prepare."""

    def __init__(self) -> None:
        self._last: asyncio.Future[None] | None = None

    def enter(self) -> Place:
        """The last place, from now on somebody's."""
        place = Place(self._last)
        self._last = place.left
        return place


@dataclass(eq=False)
class Instance:
    """One instance, and how its requests are read."""

    info: InstanceInfo
    owner: object
    intake: Intake
    lane: Lane = field(default_factory=Lane)

    @property
    def name(self) -> str:
        """Unique on its worker."""
        return self.info.name


class Instances:
    """All of them, by name."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._reserved: set[str] = set()

    def get(self, name: str) -> Instance | None:
        """The instance of that name."""
        return self._instances.get(name)

    def owned(self, name: str, owner: object, field: str = "instance") -> Instance:
        """The instance, for one who may change it. Errors: UnknownModelError, PermissionDeniedError."""
        instance = self._instances.get(name)
        if instance is None:
            yours = ", ".join(sorted(item.name for item in self.of(owner))) or "none"
            raise UnknownModelError(f"you have no instance {name!r}; yours are: {yours}", field=field)
        if instance.owner is not owner:
            message = f"instance {name!r} belongs to another client; spawn your own to train, save, load or free it"
            raise PermissionDeniedError(message, field=field)
        return instance

    def of(self, owner: object) -> list[Instance]:
        """Everything that somebody owns."""
        return [instance for instance in self._instances.values() if instance.owner is owner]

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Hold a name while its instance is made. Errors: InvalidRequestError if it is taken."""
        if not name or len(name) > 1024:
            raise InvalidRequestError("an instance's name must have 1 to 1024 characters", field="name")
        if name in self._instances or name in self._reserved:
            message = (
                f"an instance named {name!r} exists on this worker; choose another name, or dealloc that one first "
                "(one whose client is away is freed after its ttl_after_disconnect_s, 30 s by default)"
            )
            raise InvalidRequestError(message, field="name")
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)

    def add(self, instance: Instance) -> None:
        """Take a new one in."""
        self._instances[instance.name] = instance

    def remove(self, instance: Instance) -> None:
        """Forget one."""
        if self._instances.get(instance.name) is instance:
            del self._instances[instance.name]
