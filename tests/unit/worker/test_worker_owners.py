"""Clients that come, go and come back, with commands that take as long as the test says."""

import asyncio

import pytest

from harmonia.errors import InvalidRequestError, PermissionDeniedError, UnavailableError, UnknownModelError
from harmonia.protocol.instances import Hello, InstanceInfo, OptimStep, Progress, Spawn, Spawned, SpawnSpec, Stepped
from harmonia.protocol.messages import Done, Failed
from harmonia.worker import owners as owners_module
from harmonia.worker.instances import Instance, Instances, Lane
from harmonia.worker.notices import Notices
from harmonia.worker.owners import ChangeAnswer, InstanceChange, Kept, Owner, Owners

SECRET = "sixteen characters"
HELLO = Hello(id="hello", client=SECRET, ttl_after_disconnect_s=0.05)


class Changes:
    """Carries commands out when its gate opens, and counts them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.done: list[str] = []
        self.freed: list[str] = []

    async def carry_out(self, owner: Owner, command: InstanceChange) -> ChangeAnswer:
        if command.id == "broken":
            raise RuntimeError("a mistake")
        await self.gate.wait()
        self.done.append(command.id)
        owner.progress(command.id, 2.0)
        if isinstance(command, Spawn):
            return Spawned(id=command.id, instance=info(command.name))
        return Stepped(id=command.id, metrics={}, version=len(self.done), optim_step=len(self.done))

    def free(self, owner: Owner, name: str) -> None:
        self.freed.append(name)

    def free_all(self, owner: Owner) -> None:
        self.freed.append("all")


class Audience:
    """A connection that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[Kept | Progress] = []
        self.is_replaced = False

    def deliver(self, message: Kept | Progress) -> None:
        self.got.append(message)

    def replaced(self) -> None:
        self.is_replaced = True


def info(name: str) -> InstanceInfo:
    return InstanceInfo(
        name=name, path="p", backbone="b", mode="training", version=0, is_adapter=True, is_scalar=False, max_seq_len=9
    )


def step(request_id: str) -> OptimStep:
    return OptimStep(id=request_id, instance="i", lr=1.0)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def changes() -> Changes:
    return Changes()


async def test_a_command_counts_once_however_often_it_is_sent(changes: Changes) -> None:
    owners, first, second = Owners(changes), Audience(), Audience()
    owner, known = owners.welcome(HELLO, first)
    assert not known
    for request_id in ("a", "b", "c"):
        owner.take(step(request_id))
    await turns()
    owners.leave(owner, first)
    changes.gate.set()
    await turns()
    assert first.got == []
    same, known = owners.welcome(HELLO, second)
    assert known and same is owner
    for request_id in ("a", "b", "d"):  # nobody asks for c any more
        owner.take(step(request_id))
    await turns()
    assert changes.done == ["a", "b", "c", "d"]
    assert [(answer.id, answer.version) for answer in second.got if isinstance(answer, Stepped)] == [
        ("a", 1),
        ("b", 2),
        ("d", 4),
    ]


async def test_a_command_in_progress_answers_the_new_connection(changes: Changes) -> None:
    owners, first, second = Owners(changes), Audience(), Audience()
    owner, _ = owners.welcome(HELLO, first)
    owner.take(step("a"))
    await turns()
    owners.welcome(HELLO, second)
    assert first.is_replaced
    owners.leave(owner, first)  # the end of the replaced connection is not the end of the client
    owner.take(step("a"))
    changes.gate.set()
    await turns()
    assert [type(message) for message in second.got] == [Progress, Stepped]
    assert second.got[0] == Progress(id="a", share=1.0)
    assert first.got == []
    await asyncio.sleep(0.1)
    assert changes.freed == []


async def test_who_stays_away_loses_everything(changes: Changes) -> None:
    owners, audience = Owners(changes), Audience()
    owner, _ = owners.welcome(HELLO, audience)
    owner.take(Spawn(id="s", name="late", spec=SpawnSpec(path="p")))
    owners.leave(owner, audience)
    assert owner.wants("s")
    await asyncio.sleep(0.1)
    assert changes.freed == ["all"]
    assert not owner.wants("s")
    assert owners.welcome(HELLO, audience)[1] is False


async def test_a_spawn_that_nobody_waits_for(changes: Changes) -> None:
    owners, audience = Owners(changes), Audience()
    owner = owners.anonymous(audience)
    owner.take(Spawn(id="running", name="one", spec=SpawnSpec(path="p")))
    owner.give_up("running")
    assert not owner.wants("running")
    changes.gate.set()
    owner.take(Spawn(id="done", name="two", spec=SpawnSpec(path="p")))
    await turns()
    assert [message.id for message in audience.got] == ["done", "done"]
    owner.give_up("done")
    assert changes.freed == ["two"]


async def test_a_flood_of_commands_waits(changes: Changes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners_module, "MAX_RUNNING", 2)
    owner = Owners(changes).anonymous(Audience())
    owner.take(step("a"))
    await owner.room()
    owner.take(step("b"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(owner.room(), 0.01)
    changes.gate.set()
    await asyncio.wait_for(owner.room(), 1)


async def test_mistakes_and_shutdown_are_answers(changes: Changes) -> None:
    owners, audience = Owners(changes), Audience()
    owner = owners.anonymous(audience)
    owner.take(step("broken"))
    owner.take(step("waiting"))
    await turns()
    owners.close(UnavailableError("going down"))
    changes.gate.set()
    await turns()
    assert [(message.id, message.code) for message in audience.got if isinstance(message, Failed)] == [
        ("broken", "internal"),
        ("waiting", "unavailable"),
    ]


async def test_a_lane_keeps_the_order_of_entry() -> None:
    lane, order = Lane(), []

    async def go(number: int, delay_s: float, fails: bool = False) -> None:
        place = lane.enter()
        try:
            await asyncio.sleep(delay_s)
            if fails:
                return
            await place.reached()
            order.append(number)
        finally:
            place.leave()

    tasks = [asyncio.create_task(go(1, 0.03)), asyncio.create_task(go(2, 0.0, fails=True))]
    tasks += [asyncio.create_task(go(3, 0.0)), asyncio.create_task(go(4, 0.01)), asyncio.create_task(go(5, 0.0))]
    await asyncio.sleep(0.005)
    tasks[3].cancel()  # one that gives up keeps nobody waiting, and lets nobody overtake
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [1, 3, 5]


def test_names_are_unique_and_owned() -> None:
    instances, me, you = Instances(), object(), object()
    with instances.reserved("x"), pytest.raises(InvalidRequestError, match="choose another"), instances.reserved("x"):
        pass
    instances.add(Instance(info("x"), me, intake=None))
    assert instances.owned("x", me).name == "x"
    with pytest.raises(PermissionDeniedError):
        instances.owned("x", you)
    with pytest.raises(UnknownModelError, match="yours are: x"):
        instances.owned("y", me)
    with pytest.raises(InvalidRequestError), instances.reserved(""):
        pass


async def test_those_who_wait_for_changes_are_told_first() -> None:
    notices, order = Notices(), []

    async def describe() -> Done:
        await asyncio.sleep(0.01)
        order.append("told")
        return Done(id="d")

    watch = asyncio.create_task(notices.unlike(notices.revision, describe))
    left = asyncio.create_task(notices.unlike(notices.revision, describe))
    await turns()
    left.cancel()
    await turns()
    assert not watch.done()
    await notices.models_changed()
    order.append("changed")
    assert order == ["told", "changed"]
    assert await notices.unlike(0, describe) == Done(id="d")
    await watch
