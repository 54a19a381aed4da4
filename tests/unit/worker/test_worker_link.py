"""The line between the processes, and the device's loop with an engine that only takes notes."""

import socket
import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.config import WorkerConfig
from harmonia.engine.requests import (
    Answer,
    OptimStepRequest,
    SampleArrays,
    SequenceOutput,
    SequenceRequest,
    TrainRequest,
    pack_ids,
)
from harmonia.errors import AdapterLimitError, OverloadedError, UnsupportedModelError
from harmonia.protocol.instances import SpawnSpec
from harmonia.protocol.losses import LanguageModelling
from harmonia.worker.device import DeviceLoop, load_and_serve
from harmonia.worker.link import (
    Add,
    Advance,
    Attach,
    Command,
    DeviceEnd,
    Drop,
    Estimate,
    Event,
    Fatal,
    Frames,
    Hold,
    Inspect,
    Learn,
    Loading,
    Make,
    Mask,
    Measure,
    Outputs,
    Ready,
    Release,
    Reply,
    Start,
    decode_events,
    pack,
    watch_for_hangup,
)


class Notes:
    """An engine that gives each sequence two tokens unless it is held."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.held: set[int] = set()
        self.calls: list[tuple[object, ...]] = []
        self.stalled = False
        self.next_deadline_s = None
        self.num_steps = 0
        self.waiting: list[Answer] = []

    @property
    def has_work(self) -> bool:
        return bool(self.alive)

    def step(self) -> list[SequenceOutput]:
        self.num_steps += 1
        ready = [seq_id for seq_id in self.alive if seq_id not in self.held]
        self.stalled = not ready
        outputs = []
        for seq_id in ready:
            self.alive[seq_id] += 1
            last = self.alive[seq_id] == 2
            outputs.append(SequenceOutput(seq_id=seq_id, token_ids=(7,), finish_reason="length" if last else None))
            if last:
                del self.alive[seq_id]
        return outputs

    def add(self, request: SequenceRequest) -> None:
        if len(self.alive) == 2:
            raise OverloadedError("full", retry_after_s=1.0)
        self.alive[request.seq_id] = 0

    def cancel(self, seq_id: int) -> None:
        self.alive.pop(seq_id, None)

    def hold(self, seq_id: int) -> None:
        self.held.add(seq_id)

    def release(self, seq_id: int) -> None:
        self.held.discard(seq_id)

    def provide_mask(self, seq_id: int, num_generated: int, masks: bytes, proposals: bytes = b"") -> None:
        self.calls.append(("mask", seq_id, num_generated, masks, proposals))

    def close_session(self, session_id: str) -> None:
        self.calls.append(("close", session_id))

    def load_adapter(self, key: str, path: str) -> None:
        if path == "broken":
            raise OSError("no such file")
        if key == "fifth":
            raise AdapterLimitError("four at most", limit=4)

    def unload_adapter(self, key: str) -> None:
        self.calls.append(("unload", key))

    def describe(self) -> dict[str, object]:
        return {"family": "notes"}

    def spawn(self, name: str, spec: SpawnSpec, answer: Answer, progress: Callable[[float], None]) -> None:
        if name == "taken":
            raise UnsupportedModelError("taken")
        for share in (0.1, 0.101, 0.5, 1.0, 1.0):
            progress(share)
        answer.done({"instance": {"name": name}, "base": spec.path})

    def plan_spawn(self, spec: SpawnSpec) -> dict[str, object]:
        return {"fits": spec.path == "small"}

    def train(self, request: TrainRequest, answer: Answer) -> None:
        """Answers with the next optimizer step."""
        self.waiting.append(answer)

    def optim_step(self, request: OptimStepRequest, answer: Answer) -> None:
        for waiting in self.waiting:
            waiting.done({})
        answer.failed(AdapterLimitError("no step", limit=1)) if request.lr == 0 else answer.done({"version": 1})

    def stats(self) -> dict[str, object]:
        return {"steps": self.num_steps}


class Peer:
    """The I/O process' end, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._frames = Frames()
        self._events: list[Event] = []
        sock.settimeout(10)

    def send(self, *commands: Command) -> None:
        self.sock.sendall(pack(commands))

    def event(self) -> Event:
        while not self._events:
            for frame in self._frames.feed(self.sock.recv(65536)):
                self._events += decode_events(frame)
        return self._events.pop(0)


def add(seq_id: int) -> Add:
    return Add(SequenceRequest(seq_id=seq_id, model="m", token_ids=b"\x01\x00\x00\x00"))


@pytest.fixture
def peer_and_engine():
    ours, theirs = socket.socketpair()
    engine = Notes()
    loop = threading.Thread(target=DeviceLoop(engine, DeviceEnd(theirs)).run)
    loop.start()
    with ours, theirs:
        yield Peer(ours), engine
        ours.close()
        loop.join(10)
        assert not loop.is_alive()


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_frames_survive_any_cut(bodies: list[bytes], size: int) -> None:
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    frames = Frames()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [frame for piece in pieces for frame in frames.feed(piece)] == bodies


def test_every_step_is_one_message(peer_and_engine) -> None:
    peer, _ = peer_and_engine
    peer.send(add(1), add(2))
    first, second = peer.event(), peer.event()
    assert [output.seq_id for output in first.outputs] == [1, 2]
    assert {output.finish_reason for output in second.outputs} == {"length"}


def test_refusals_come_as_outputs(peer_and_engine) -> None:
    peer, _ = peer_and_engine
    peer.send(add(1), add(2), add(3))
    refused = peer.event().outputs[0]
    assert (refused.seq_id, refused.error.code, refused.error.details) == (3, "overloaded", {"retry_after_s": 1.0})


def test_held_sequences_wait_without_steps(peer_and_engine) -> None:
    peer, engine = peer_and_engine
    peer.send(add(1), Hold((1,)))
    peer.send(Measure(1))
    steps = peer.event().value["steps"]
    peer.send(Measure(2))
    assert peer.event().value["steps"] <= steps + 2
    peer.send(Mask(1, 0, b"\xff\x01", pack_ids((7,))), Release((1,)))
    assert peer.event().outputs[0].seq_id == 1
    assert engine.calls == [("mask", 1, 0, b"\xff\x01", pack_ids((7,)))]


def test_dropped_sequences_say_nothing(peer_and_engine) -> None:
    peer, _ = peer_and_engine
    peer.send(add(1), Hold((1,)), Drop((1,)), Inspect(5))
    assert peer.event() == Reply(5, {"family": "notes"})


def test_errors_of_commands_are_replies(peer_and_engine) -> None:
    peer, _ = peer_and_engine
    peer.send(Attach(1, "fifth", "x"), Attach(2, "b", "broken"), Attach(3, "c", "x"))
    limit, broken, good = peer.event(), peer.event(), peer.event()
    assert (limit.tag, limit.error.code, limit.error.details) == (1, "adapter_limit", {"limit": 4})
    assert (broken.error.code, broken.error.message) == ("invalid_request", "OSError: no such file")
    assert good == Reply(3, {})


def test_a_spawn_tells_how_far_it_is(peer_and_engine) -> None:
    peer, _ = peer_and_engine
    peer.send(Make(4, "policy", SpawnSpec(path="small")), Make(5, "taken", SpawnSpec(path="small")))
    assert [peer.event() for _ in range(3)] == [Loading(4, 0.1), Loading(4, 0.5), Loading(4, 1.0)]
    assert peer.event() == Reply(4, {"instance": {"name": "policy"}, "base": "small"})
    assert peer.event().error.message == "taken"
    peer.send(Estimate(6, SpawnSpec(path="small")))
    assert peer.event() == Reply(6, {"fits": True})


def test_training_is_answered_when_it_is_done(peer_and_engine) -> None:
    peer, engine = peer_and_engine
    request = TrainRequest(instance="i", sides=(SampleArrays(token_ids=b""),), loss=LanguageModelling())
    peer.send(Learn(1, request), Learn(2, request), Measure(3))
    assert peer.event().tag == 3
    peer.send(Advance(4, OptimStepRequest(instance="i", lr=1.0)))
    assert [peer.event() for _ in range(3)] == [Reply(1, {}), Reply(2, {}), Reply(4, {"version": 1})]
    engine.waiting.clear()
    peer.send(Advance(5, OptimStepRequest(instance="i", lr=0.0)))
    assert peer.event().error.details == {"limit": 1}


def test_a_deadline_alone_makes_a_step(peer_and_engine) -> None:
    peer, engine = peer_and_engine
    engine.next_deadline_s = time.monotonic() + 0.05
    peer.send(Measure(1))
    steps = peer.event().value["steps"]
    deadline = time.monotonic() + 5
    while engine.num_steps == steps and time.monotonic() < deadline:
        time.sleep(0.01)
    engine.next_deadline_s = None
    assert engine.num_steps > steps


def test_loading_reports_ready_or_why_not() -> None:
    config = WorkerConfig(model="x", key="m", socket="s")

    def load(config: WorkerConfig, progress: object) -> Notes:
        if config.model == "bad":
            raise UnsupportedModelError("no such family", family="bad")
        return Notes()

    for model, status in (("x", 0), ("bad", 3)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer = Peer(ours)
            peer.send(Start(msgspec.structs.replace(config, model=model)))
            ended: list[int] = []
            thread = threading.Thread(
                target=lambda theirs=theirs, ended=ended: ended.append(load_and_serve(theirs, load, lambda: None))
            )
            thread.start()
            event = peer.event()
            ours.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert ended == [status]
        if status:
            assert isinstance(event, Fatal) and event.error.message == "no such family"
        else:
            assert event == Ready({"family": "notes"})


def test_an_io_process_that_is_gone_before_the_start_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert load_and_serve(theirs, lambda *_: pytest.fail("nothing to load"), lambda: None) == 0


def test_hangup_is_noticed_without_reading() -> None:
    ours, theirs = socket.socketpair()
    noticed = threading.Event()
    threading.Thread(target=watch_for_hangup, args=(theirs, noticed.set), daemon=True).start()
    with theirs:
        ours.sendall(b"unread")
        assert not noticed.wait(0.05)
        ours.close()
        assert noticed.wait(5)


def test_an_empty_step_is_not_sent(peer_and_engine) -> None:
    peer, _ = peer_and_engine
    peer.send(add(1), Hold((1,)), Measure(1))
    assert isinstance(peer.event(), Reply)
    peer.send(Release((1,)))
    assert isinstance(peer.event(), Outputs)
