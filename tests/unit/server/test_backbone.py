"""How the workers of one base model follow what is wanted, on a fleet with room for a given number of cache tokens."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from harmonia.config import CacheConfig, EngineConfig, WorkerConfig
from harmonia.errors import AdapterLimitError
from harmonia.protocol.fleet import Fleet, WorkerFailure, WorkerState, WorkerStatus
from harmonia.protocol.messages import Description, ModelInfo
from harmonia.server.services.models.backbone import Backbone, Observed, Wanted


@dataclass
class Worker:
    """What a router knows of a ready worker."""

    description: Description
    num_streams: int = 0
    busy_with: set[str] = field(default_factory=set)
    """Adapters whose answers it writes, and which another worker has."""


@dataclass
class SmallMachine(Fleet):
    """A fleet, and the router in front of it. Workers are ready or refuse at once."""

    room: int
    max_adapters: int = 4
    workers: dict[str, Worker] = field(default_factory=dict)
    refused: dict[str, WorkerStatus] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)
    retired: set[str] = field(default_factory=set)
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    may_unload: asyncio.Event = field(default_factory=asyncio.Event)
    unloading: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_load.set()
        self.may_unload.set()

    async def start(self, config: WorkerConfig) -> str:
        replica, size = f"r{len(self.started)}", config.engine.cache.kv_cache_len or 0
        self.started.append(size)
        left = self.room - sum(worker.description.kv_cache_len for worker in self.workers.values())
        if size <= left:
            self.workers[replica] = Worker(_description(size))
        else:
            details: dict[str, object] = {"total_bytes": size, "available_bytes": left}
            failure = WorkerFailure(code="insufficient_memory", message=f"{size} > {left}", details=details)
            self.refused[replica] = WorkerStatus(
                replica=replica, key="tiny", state=WorkerState.FAILED, socket="", failure=failure
            )
        return replica

    async def stop(self, replica: str) -> None:
        self.workers.pop(replica, None)
        self.refused.pop(replica, None)

    async def close(self) -> None:
        self.workers.clear()

    def statuses(self) -> tuple[WorkerStatus, ...]:
        return tuple(self.refused.values())

    async def watch(self) -> AsyncIterator[WorkerStatus]:
        raise NotImplementedError
        yield

    # as a router

    def find(self, replica: str) -> Worker | None:
        return self.workers.get(replica)

    def serves(self, model: str) -> bool:
        return any(
            info.key == model
            for replica, worker in self.workers.items()
            if replica not in self.retired
            for info in worker.description.models
        )

    def retire(self, replica: str) -> None:
        self.retired.add(replica)

    def withdraw(self, adapters: set[str], replica: str) -> list[str]:
        return [key for key in adapters if key not in self.workers[replica].busy_with]

    async def wait_change(self) -> None:
        await asyncio.sleep(0.001)

    async def load_adapter(self, key: str, path: str, backbone: str, only: str) -> None:
        await self.may_load.wait()
        for worker in [self.workers[only]]:
            models = worker.description.models
            if len(models) > self.max_adapters:
                raise AdapterLimitError(f"no room for {key}: max_adapters is {self.max_adapters}")
            worker.description = _description(
                worker.description.kv_cache_len, *models[1:], ModelInfo(key=key, parent=backbone)
            )

    async def unload_adapter(self, key: str, only: str) -> None:
        self.unloading.append(key)
        await self.may_unload.wait()
        worker = self.workers[only]
        left = [model for model in worker.description.models[1:] if model.key != key]
        worker.description = _description(worker.description.kv_cache_len, *left)


def _description(size: int, *adapters: ModelInfo) -> Description:
    return Description(
        id="1",
        protocol_version=2,
        models=(ModelInfo(key="tiny"), *adapters),
        family="llama",
        vocab_size=9,
        max_seq_len=8,
        kv_cache_len=size,
        precision="float32",
        device="cpu",
        has_chat_template=True,
        plan={"total_bytes": size},
    )


def wanted(size: int, *adapters: str) -> Wanted:
    engine = EngineConfig(cache=CacheConfig(kv_cache_len=size))
    return Wanted(WorkerConfig(model="/tiny", key="tiny", engine=engine), {key: f"/{key}" for key in adapters})


def backbone(machine: SmallMachine, size: int, *adapters: str) -> Backbone:
    return Backbone(machine, machine, wanted(size, *adapters), lambda: None)  # type: ignore[arg-type]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.001)


ONLINE = Observed("ONLINE")


async def test_a_new_config_takes_over_before_the_old_worker_ends() -> None:
    machine = SmallMachine(room=100)
    kept = backbone(machine, 30)
    await until(lambda: kept.observed() == {"tiny": ONLINE})
    machine.workers["r0"].num_streams = 1
    kept.want(wanted(50))
    await until(lambda: "r0" in machine.retired)
    assert set(machine.workers) == {"r0", "r1"}
    machine.workers["r0"].num_streams = 0
    await until(lambda: set(machine.workers) == {"r1"})
    await kept.close()


async def test_adapters_are_on_the_new_worker_before_the_old_one_ends() -> None:
    machine = SmallMachine(room=100, max_adapters=2)
    kept = backbone(machine, 30, "a", "b", "c")
    await until(lambda: kept.is_online and machine.serves("a") and machine.serves("b"))
    machine.may_load.clear()
    kept.want(wanted(50, "a", "b", "c"))
    await until(lambda: machine.started == [30, 50])
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert machine.retired == set() and machine.serves("a")
    machine.may_load.set()
    await until(lambda: "r0" in machine.retired)
    assert machine.serves("a") and machine.serves("b")
    await until(lambda: set(machine.workers) == {"r1"})
    assert kept.observed()["c"].error == "no room for c: max_adapters is 2"
    await kept.close()


async def test_a_first_worker_answers_before_its_adapters_do() -> None:
    machine = SmallMachine(room=100)
    machine.may_load.clear()
    kept = backbone(machine, 30, "a")
    await until(lambda: kept.observed() == {"tiny": ONLINE, "a": Observed("PENDING")})
    assert not kept.is_online
    machine.may_load.set()
    await until(lambda: kept.is_online)
    await kept.close()


async def test_without_room_for_both_the_old_worker_ends_first() -> None:
    machine = SmallMachine(room=100)
    kept = backbone(machine, 60)
    await until(lambda: kept.observed() == {"tiny": ONLINE})
    kept.want(wanted(80))
    await until(lambda: set(machine.workers) == {"r2"} and kept.observed() == {"tiny": ONLINE})
    assert machine.started == [60, 80, 80]
    await kept.close()


async def test_what_can_never_fit_leaves_the_old_worker_alone_until_the_wish_changes() -> None:
    machine = SmallMachine(room=100)
    kept = backbone(machine, 60)
    await until(lambda: kept.observed() == {"tiny": ONLINE})
    kept.want(wanted(101))
    await until(lambda: kept.observed()["tiny"].error is not None)
    assert kept.observed()["tiny"].online == "ONLINE"
    assert set(machine.workers) == {"r0"}
    await asyncio.sleep(0.05)
    assert machine.started == [60, 101]
    kept.want(wanted(60))
    await until(lambda: kept.observed() == {"tiny": ONLINE})
    assert machine.started == [60, 101]
    await kept.close()


async def test_a_refusal_is_told_and_tried_again_when_asked() -> None:
    machine = SmallMachine(room=10)
    kept = backbone(machine, 60)
    await until(lambda: kept.observed() == {"tiny": Observed("ERROR", "60 > 10")})
    machine.room = 100
    await asyncio.sleep(0.02)
    assert machine.started == [60]
    kept.retry()
    await until(lambda: kept.observed() == {"tiny": ONLINE})
    await kept.close()


async def test_an_adapter_too_many_says_so_and_the_others_serve() -> None:
    machine = SmallMachine(room=100, max_adapters=2)
    kept = backbone(machine, 60, "a", "b", "c")
    await until(lambda: "c" in kept.observed() and kept.observed()["c"].online == "ERROR")
    assert kept.observed() == {
        "tiny": ONLINE,
        "a": ONLINE,
        "b": ONLINE,
        "c": Observed("ERROR", "no room for c: max_adapters is 2"),
    }
    await kept.close()


async def test_what_is_not_wanted_any_longer_ends_and_can_come_back() -> None:
    machine = SmallMachine(room=100)
    kept = backbone(machine, 60)
    await until(lambda: kept.observed() == {"tiny": ONLINE})
    kept.want(None)
    await until(lambda: kept.done)
    assert machine.workers == {}
    assert kept.observed() == {}


async def test_an_adapter_that_is_being_unloaded_is_not_online_when_it_is_wanted_again() -> None:
    machine = SmallMachine(room=100)
    kept = backbone(machine, 60, "a")
    await until(lambda: kept.is_online)
    machine.may_unload.clear()
    kept.want(wanted(60))
    await until(lambda: bool(machine.unloading))
    kept.want(wanted(60, "a"))
    assert kept.observed() == {"tiny": ONLINE, "a": Observed("PENDING")}
    machine.may_unload.set()
    await until(lambda: kept.is_online)
    assert machine.serves("a")
    await kept.close()


async def test_an_adapter_that_moved_ends_its_answers_first() -> None:
    machine = SmallMachine(room=100)
    kept = backbone(machine, 60, "a", "b")
    await until(lambda: kept.is_online)
    machine.workers["r0"].busy_with.add("a")
    kept.want(wanted(60))
    await until(lambda: machine.unloading == ["b"])
    await asyncio.sleep(0.02)
    assert machine.unloading == ["b"]
    machine.workers["r0"].busy_with.clear()
    await until(lambda: not machine.serves("a"))
    await kept.close()
