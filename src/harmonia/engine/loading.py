"""Backbones that are being read in a thread, while everything else goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from harmonia.engine.backbone import Backbone
from harmonia.engine.memory import InstanceNeed, Plan
from harmonia.engine.plan import BackboneKey
from harmonia.engine.requests import Answer
from harmonia.errors import HarmoniaError, UnsupportedModelError
from harmonia.log import get_logger
from harmonia.models.source import ModelSource
from harmonia.protocol.instances import SpawnSpec

Share = Callable[[float], None]

_ALMOST = 0.99
"""Progress says 1 only when the instance is there."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PendingSpawn:
    """A spawn whose backbone is being read."""

    name: str
    spec: SpawnSpec
    need: InstanceNeed
    answer: Answer
    progress: Share


@dataclass(slots=True, eq=False)
class Load:
    """A backbone on its way, and who waits for it."""

    key: BackboneKey
    plan: Plan
    is_shared: bool
    waiting: list[PendingSpawn] = field(default_factory=list)
    share: float = 0.0
    future: Future[Backbone] | None = None

    def note(self, share: float) -> None:
        """So much of it was read; called in the thread."""
        self.share = share

    def result(self) -> Backbone | None:
        """The backbone, or None after telling those who wait why there is none."""
        assert self.future is not None
        try:
            return self.future.result()
        except HarmoniaError as error:
            failure: HarmoniaError = error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            log.exception("reading %s failed", self.key.path)
            failure = UnsupportedModelError(f"{self.key.path} cannot be read: {type(error).__name__}: {error}")
        for spawn in self.waiting:
            spawn.answer.failed(failure)
        return None


class Loader:
    """Reads one backbone after another."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")

    def names(self) -> Iterator[str]:
        """Of the instances that wait for what is read."""
        for load in self.loads:
            yield from (spawn.name for spawn in load.waiting)

    def find(self, key: BackboneKey) -> Load | None:
        """A shared backbone of that kind on its way."""
        return next((load for load in self.loads if load.is_shared and load.key.suits(key)), None)

    def start(
        self,
        key: BackboneKey,
        source: ModelSource,
        plan: Plan,
        *,
        draft: ModelSource | None,
        own_name: str | None,
    ) -> Load:
        """Begin to read a backbone that was planned. own_name: of the instance that alone will use it."""
        load = Load(key, plan, is_shared=own_name is None)
        identity = key.identity if own_name is None else f"{key.identity}#{own_name}"
        load.future = self._thread.submit(Backbone.read, source, identity, plan, load.note, draft)
        self.loads.append(load)
        return load

    def finished(self) -> Iterator[Load]:
        """Loads that ended since the last call; the others report their progress."""
        for load in list(self.loads):
            assert load.future is not None
            if load.future.done():
                self.loads.remove(load)
                yield load
            else:
                for spawn in load.waiting:
                    spawn.progress(min(load.share, _ALMOST))
