"""The backbones of a device, each with its instances, found by the names of these."""

from __future__ import annotations

from collections.abc import Iterator

from harmonia.engine.instances import Instances
from harmonia.engine.plan import BackboneKey
from harmonia.errors import UnknownModelError


class Lanes:
    """One lane per backbone, in the order in which they came."""

    def __init__(self) -> None:
        self._lanes: list[Instances] = []
        self._shared: dict[BackboneKey, Instances] = {}
        """Backbones that nobody changes."""
        self._closing: list[Instances] = []
        """Backbones without instances that still write a save."""

    def __iter__(self) -> Iterator[Instances]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def __getitem__(self, index: int) -> Instances:
        return self._lanes[index]

    def add(self, lane: Instances, shared_as: BackboneKey | None = None) -> None:
        """Add a backbone; new instances may use it if it is shared."""
        self._lanes.append(lane)
        if shared_as is not None:
            self._shared[shared_as] = lane

    def remove(self, lane: Instances) -> None:
        """Close a backbone, once it has written what it is writing."""
        self._closing.append(lane)
        self._lanes.remove(lane)
        self._shared = {key: other for key, other in self._shared.items() if other is not lane}

    @property
    def is_writing(self) -> bool:
        """A save is on its way."""
        return bool(self._closing) or any(lane.is_busy for lane in self._lanes)

    def poll(self) -> None:
        """Tell of saves that ended, and close what waited for them."""
        for lane in (*self._lanes, *self._closing):
            lane.poll()
        for lane in [lane for lane in self._closing if not lane.is_busy]:
            self._closing.remove(lane)
            lane.close()

    def shared(self, key: BackboneKey) -> Instances | None:
        """The backbone that a new instance on these weights may use."""
        return next((lane for shared_as, lane in self._shared.items() if shared_as.suits(key)), None)

    def names(self) -> Iterator[str]:
        """Of all instances."""
        for lane in self._lanes:
            yield from lane.engine.backbone.instances

    def of(self, name: str, field: str = "model") -> Instances:
        """Where an instance is; `UnknownModelError` names the field that asked for it and lists those that exist."""
        for lane in self._lanes:
            if name in lane.engine.backbone.instances:
                return lane
        known = ", ".join(map(repr, self.names()))
        raise UnknownModelError(f"no model {name!r} here; there is {known or 'none'}", field=field)
