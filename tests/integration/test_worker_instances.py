"""Instances over the protocol: spawn, train, score, save, and clients that come, go and come back."""

import asyncio
import contextlib
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from harmonia.errors import InvalidRequestError, PermissionDeniedError, SequenceTooLongError, UnknownModelError
from harmonia.protocol.instances import (
    Clone,
    Dealloc,
    Detokenize,
    DetokenizeIds,
    Hello,
    Load,
    OptimStep,
    PlanSpawn,
    Save,
    Score,
    SetOptimStep,
    Spawn,
    SpawnSpec,
    Tokenize,
    TokenizeText,
    TokenSample,
    Train,
)
from harmonia.protocol.losses import LanguageModelling, Mse
from harmonia.protocol.messages import (
    Cancel,
    Constraint,
    Describe,
    Done,
    Generate,
    Step,
    TextPrompt,
    ThreadPrompt,
)
from harmonia.protocol.sampling import SamplingParams
from harmonia.protocol.threads import StructuredOutput, Text, ThreadData, ThreadTurn
from tests.integration.worker_client import FREE, Caller, WorkerProcess, start_worker

TRAINING = {"mode": "training", "use_adapter": True, "max_batch_size": 256}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A bare worker with a port."""
    with start_worker(None, tmp_path_factory.mktemp("worker"), port=0) as running:
        yield running.wait_ready()


def thread(*texts: str, weight: float = 1.0) -> ThreadData:
    """A user and an assistant by turns; the last turn has the weight."""
    roles = ["user", "assistant"] * len(texts)
    return ThreadData(
        turns=tuple(
            ThreadTurn(role=role, content=(Text(text=text),), weight=weight if place == len(texts) - 1 else 0.0)
            for place, (role, text) in enumerate(zip(roles, texts, strict=False))
        )
    )


def train(request_id: str, instance: str, text: str = "yes") -> Train:
    return Train(id=request_id, instance=instance, sides=(thread("Well?", text),), loss=LanguageModelling())


def step(request_id: str, instance: str, lr: float = 1e-2) -> OptimStep:
    return OptimStep(id=request_id, instance=instance, lr=lr)


def floats(values: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(values) // 4}f", values)


async def logprob(caller: Caller, request_id: str, instance: str) -> float:
    """Of the answer that is trained."""
    scored = await caller.do(Score(id=request_id, instance=instance, sample=thread("Well?", "yes"), what="logprobs"))
    return sum(floats(scored.values))


async def wait_free(worker: WorkerProcess, name: str) -> None:
    """Until nobody has an instance of that name."""
    async with worker.connect() as caller, asyncio.timeout(20):
        for number in range(10_000):
            description = await caller.do(Describe(id=f"d{number}"))
            if name not in {model.key for model in description.models}:
                return
            await asyncio.sleep(0.05)


async def test_what_is_trained_answers_next(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect(tcp=True) as caller:
        planned = await caller.do(PlanSpawn(id="plan", spec=SpawnSpec(path=str(tiny), **TRAINING)))
        assert planned.plan["fits"]
        answers = await caller.spawn("policy", tiny, **TRAINING)
        assert answers.instance.is_adapter and answers.instance.version == 0
        before = await logprob(caller, "before", "policy")
        versions = []
        for number in range(5):
            assert await caller.do(train(f"t{number}", "policy")) == Done(id=f"t{number}")
            stepped = await caller.do(step(f"s{number}", "policy"))
            versions.append((stepped.version, stepped.optim_step, stepped.metrics["num_samples"]))
        assert versions == [(n, n, 1.0) for n in range(1, 6)]
        assert await logprob(caller, "after", "policy") > before + 1.0
        prompt = ThreadPrompt(thread=thread("Well?"))
        greedy = SamplingParams(temperature=0, max_tokens=4)
        end = await caller.ask(Generate(id="g", model="policy", prompt=prompt, sampling=greedy))
        assert {delta.version for delta in end.deltas} == {5}
        await caller.do(Dealloc(id="dealloc", instance="policy"))
        with pytest.raises(UnknownModelError):
            await caller.do(train("late", "policy"))


async def test_commands_take_effect_in_the_order_in_which_they_were_sent(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("ordered", tiny, **TRAINING)
        long = "y" * 200
        for number in range(8):  # a short render must not overtake a long one, nor a step the samples before it
            texts = [long if place % 2 else "n" for place in range(number + 1)]
            for place, text in enumerate(texts):
                await caller.send(train(f"o{number}-{place}", "ordered", text))
            await caller.send(step(f"o{number}", "ordered"))
            score = Score(id=f"o{number}-score", instance="ordered", sample=thread("a", "b"), what="logprobs")
            await caller.send(score)
        ids = [f"o{n}" for n in range(8)] + [f"o{n}-{p}" for n in range(8) for p in range(n + 1)]
        ends = await caller.gather(*ids, *(f"o{n}-score" for n in range(8)))
        assert [ends[f"o{n}"].end.metrics["num_samples"] for n in range(8)] == [n + 1.0 for n in range(8)]
        await caller.do(Dealloc(id="dealloc", instance="ordered"))


async def test_hundreds_of_samples_at_once_stop_no_stream(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller, worker.connect() as other:
        await caller.spawn("busy", tiny, **TRAINING)
        for number in range(300):
            await caller.send(train(f"b{number}", "busy", "yes " * (number % 20)))
        started = time.monotonic()
        sampling = SamplingParams(max_tokens=1)
        await other.ask(Generate(id="g", model="busy", prompt=TextPrompt(text="Hi"), sampling=sampling))
        assert time.monotonic() - started < 10
        await caller.gather(*(f"b{number}" for number in range(300)))
        assert (await caller.do(step("s", "busy"))).metrics["num_samples"] == 300
        await caller.do(Dealloc(id="dealloc", instance="busy"))


async def test_tokens_of_threads(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("words", tiny, max_seq_len=128)
        data = thread("Grüße", "Hallo €", "Well?", "yes")
        tokens = (await caller.do(Tokenize(id="1", instance="words", thread=data))).thread
        assert (await caller.do(Detokenize(id="2", instance="words", thread=tokens))).thread == data
        ids = (await caller.do(TokenizeText(id="3", instance="words", text="a € b"))).token_ids
        assert (await caller.do(DetokenizeIds(id="4", instance="words", token_ids=ids))).text == "a € b"
        (whole,) = [await caller.do(Score(id="5", instance="words", sample=tokens, what="logprobs"))]
        assert len(floats(whole.values)) == len("yes") + 1  # and the end of the turn
        unweighted = await caller.do(Score(id="6", instance="words", sample=thread("a", weight=0.0), what="logprobs"))
        assert unweighted.values == b""
        sample = TokenSample(token_ids=(1, 2), weights=(1.0, 1.0))
        with pytest.raises(InvalidRequestError, match="position 0"):
            await caller.do(Score(id="7", instance="words", sample=sample, what="logprobs"))
        with pytest.raises(InvalidRequestError, match="language model"):
            await caller.do(Score(id="8", instance="words", sample=tokens, what="last_score"))
        with pytest.raises(SequenceTooLongError):
            await caller.do(Score(id="9", instance="words", sample=thread("a" * 200), what="logprobs"))
        await caller.do(Dealloc(id="dealloc", instance="words"))


async def test_a_scoring_model_scores(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("judge", tiny, scalar_head=True, **TRAINING)
        data = thread("Well?", "yes")
        for number in range(4):
            await caller.do(Train(id=f"t{number}", instance="judge", sides=(data,), loss=Mse(target=1.0)))
            await caller.do(step(f"s{number}", "judge"))
        (last,) = floats((await caller.do(Score(id="1", instance="judge", sample=data, what="last_score"))).values)
        scores = floats((await caller.do(Score(id="2", instance="judge", sample=data, what="scores"))).values)
        assert last != 0.0 and len(scores) == len("yes") + 1
        with pytest.raises(InvalidRequestError, match="scoring model"):
            await caller.do(Score(id="3", instance="judge", sample=data, what="logprobs"))
        with pytest.raises(InvalidRequestError, match="scoring model"):
            await caller.do(Generate(id="4", model="judge", prompt=TextPrompt(text="Hi")))
        await caller.do(Dealloc(id="dealloc", instance="judge"))


async def test_generated_threads_hold_exactly_what_was_sampled(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("writer", tiny, max_seq_len=256)
        asked = ThreadPrompt(thread=thread("Well?"))
        sampling = SamplingParams(seed=3, max_tokens=5, ignore_eos=True)
        answers = await caller.ask(Generate(id="g", model="writer", prompt=asked, sampling=sampling, n=2))
        prompt_ids = answers.deltas[0].prompt_token_ids
        for index, written in enumerate(answers.finished.threads):
            assert written.token_ids == (*prompt_ids, *answers.ids(index))
            assert [turn.weight for turn in written.turns] == [0.0, 1.0]
            assert (written.turns[-1].start, written.turns[-1].stop) == (len(prompt_ids), len(prompt_ids) + 5)
            assert written.turns[-1].content == (Text(text=answers.text(index)),)
        (first, _) = answers.finished.threads
        more = await caller.ask(Generate(id="h", model="writer", prompt=ThreadPrompt(thread=first), sampling=sampling))
        assert more.finished.threads[0].token_ids[: len(first.token_ids)] == first.token_ids
        schema = '{"type": "boolean"}'
        constraint = Constraint(kind="json_schema", source=schema)
        strict = await caller.ask(
            Generate(id="j", model="writer", prompt=asked, constraint=constraint, sampling=SamplingParams(max_tokens=9))
        )
        (fragment,) = strict.finished.threads[0].turns[-1].content
        assert isinstance(fragment, StructuredOutput) and fragment.parsed_json in ("true", "false")
        await caller.do(Dealloc(id="dealloc", instance="writer"))


async def test_saved_and_loaded_weights_are_the_same(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("saver", tiny, **TRAINING)
        await caller.do(train("t", "saver"))
        await caller.do(step("s", "saver"))
        saved = await caller.do(Save(id="save", instance="saver", key="runs/one", inference_only=False))
        assert saved.key == "runs/one" and saved.num_bytes > 0 and Path(saved.path).is_dir()
        at_save = await logprob(caller, "1", "saver")
        frozen = await caller.do(Clone(id="clone", instance="saver", name="snapshot"))
        assert frozen.instance.mode == "inference"
        await caller.do(train("t2", "saver"))
        await caller.do(step("s2", "saver"))
        assert await logprob(caller, "2", "saver") != at_save
        assert await logprob(caller, "3", "snapshot") == pytest.approx(at_save, abs=1e-4)
        loaded = await caller.do(Load(id="load", instance="saver", path="model_registry://runs/one"))
        assert loaded.optim_step == 1 and loaded.version > 2
        assert await logprob(caller, "4", "saver") == pytest.approx(at_save, abs=1e-4)
        assert await caller.do(SetOptimStep(id="set", instance="saver", step=7)) == Done(id="set")
        await caller.spawn("again", "model_registry://runs/one")
        assert await logprob(caller, "5", "again") == pytest.approx(at_save, abs=1e-4)
        with pytest.raises(UnknownModelError, match="runs/one"):
            await caller.do(Load(id="no", instance="saver", path="model_registry://runs/two"))
        for name in ("saver", "snapshot", "again"):
            await caller.do(Dealloc(id=f"dealloc-{name}", instance=name))


async def test_instances_of_others_can_be_asked_and_nothing_else(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as mine, worker.connect() as other:
        await mine.spawn("mine", tiny, **TRAINING)
        with pytest.raises(InvalidRequestError, match="choose another name"):
            await other.spawn("mine", tiny)
        assert await logprob(other, "score", "mine") < 0
        forbidden = [
            train("1", "mine"),
            step("2", "mine"),
            Save(id="3", instance="mine", key="stolen"),
            Load(id="4", instance="mine", path=str(tiny)),
            Dealloc(id="5", instance="mine"),
            Clone(id="6", instance="mine", name="copy"),
            SetOptimStep(id="7", instance="mine", step=0),
        ]
        for command in forbidden:
            with pytest.raises(PermissionDeniedError, match="another client"):
                await other.do(command)
        await mine.do(Dealloc(id="dealloc", instance="mine"))


async def test_two_clients_that_want_one_name_at_once(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as one, worker.connect() as two:
        results = await asyncio.gather(one.spawn("same", tiny), two.spawn("same", tiny), return_exceptions=True)
        refused = [result for result in results if isinstance(result, InvalidRequestError)]
        assert len(refused) == 1 and "choose another name" in refused[0].message
        winner = (one, two)[[isinstance(result, Exception) for result in results].index(False)]
        await winner.do(Dealloc(id="dealloc", instance="same"))


async def test_a_client_that_comes_back_finds_its_answers_once(worker: WorkerProcess, tiny: Path) -> None:
    secret = "a secret of the first client"
    async with worker.connect(secret) as caller:
        await caller.spawn("kept", tiny, **TRAINING)
        await caller.do(train("t0", "kept"))
        for number in range(1, 30):
            await caller.send(train(f"t{number}", "kept", "long " * 30))
        await caller.send(step("s", "kept"))
        caller.socket.transport.abort()  # nobody knows which of them arrived
    async with worker.connect() as caller:
        hello = await caller.do(Hello(id="hello", client=secret))
        assert hello.resumed
        for number in range(30):
            await caller.send(train(f"t{number}", "kept", "long " * 30))
        await caller.send(step("s", "kept"))
        ends = await caller.gather(*(f"t{number}" for number in range(30)), "s")
        assert ends["t3"].end == Done(id="t3")
        assert (ends["s"].end.metrics["num_samples"], ends["s"].end.version) == (30.0, 1)
        await caller.send(step("s", "kept"))  # the same id on the same connection says nothing more
        await caller.do(train("t", "kept"))
        assert (await caller.do(step("s2", "kept"))).optim_step == 2
        await caller.do(Dealloc(id="dealloc", instance="kept"))


async def test_a_connection_that_is_replaced_is_closed(worker: WorkerProcess, tiny: Path) -> None:
    secret = "a secret of the second client"
    async with worker.connect(secret) as old, worker.connect() as new:
        await old.spawn("moved", tiny)
        assert (await new.do(Hello(id="hello", client=secret))).resumed
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(old.socket.recv(), 30)
        assert closed.value.rcvd.code == 4001
        await new.do(Dealloc(id="dealloc", instance="moved"))


async def test_what_a_client_leaves_behind_is_freed_after_its_time(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect("a secret of the third client", ttl_s=0.3) as caller:
        await caller.spawn("left", tiny, **TRAINING)
        await caller.send(train("t", "left", "x" * 150))  # it dies in the middle of a step
        await caller.send(step("s", "left"))
        await caller.send(Generate(id="g", model="left", prompt=TextPrompt(text="Hi"), sampling=FREE))
        while not isinstance(await caller.receive(), Step):
            pass
        caller.socket.transport.abort()
    async with worker.connect() as other:
        await other.until_quiet()
    await wait_free(worker, "left")
    async with worker.connect() as caller:
        assert not (await caller.do(Hello(id="hello", client="a secret of the third client"))).resumed
        await caller.spawn("left", tiny)
        await caller.do(Dealloc(id="dealloc", instance="left"))


async def test_a_spawn_that_is_cancelled_leaves_nothing(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("base", tiny)
        await caller.send(Spawn(id="spawn", name="unwanted", spec=SpawnSpec(path=str(tiny))))
        await caller.send(Cancel(id="spawn"))
        await asyncio.sleep(0.1)
        await wait_free(worker, "unwanted")
        await caller.spawn("unwanted", tiny)
        await caller.do(Dealloc(id="dealloc", instance="unwanted"))


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        ({"client": "short"}, "at least 16"),
        ({"client": "x" * 16, "ttl_after_disconnect_s": -1.0}, "between 0 and"),
        ({"client": "x" * 16, "ttl_after_disconnect_s": float("nan")}, "between 0 and"),
    ],
)
async def test_bad_greetings_are_refused(worker: WorkerProcess, hello: dict[str, object], says: str) -> None:
    async with worker.connect() as caller:
        with pytest.raises(InvalidRequestError, match=says):
            await caller.do(Hello(id="hello", **hello))


async def test_malformed_commands_fail_alone(worker: WorkerProcess, tiny: Path) -> None:
    async with worker.connect() as caller:
        await caller.spawn("robust", tiny, **TRAINING)
        broken = {"type": "Train", "id": "m", "instance": "robust", "sides": "none", "loss": {"type": "Nonsense"}}
        await caller.socket.send(msgspec.msgpack.encode(broken))
        assert isinstance((await caller.gather("m"))["m"].error, InvalidRequestError)
        bad = [
            TokenSample(token_ids=(), weights=()),
            TokenSample(token_ids=(1, 2), weights=(0.0,)),
            TokenSample(token_ids=(1, 10**6), weights=(0.0, 1.0)),
            TokenSample(token_ids=(1, -1), weights=(0.0, 1.0)),
            TokenSample(token_ids=(1, 2), weights=(1.0, 1.0)),
            TokenSample(token_ids=(1, 2), weights=(0.0, float("nan"))),
            ThreadData(turns=()),
        ]
        for number, sample in enumerate(bad):
            with pytest.raises(InvalidRequestError):
                await caller.do(Train(id=f"bad{number}", instance="robust", sides=(sample,), loss=LanguageModelling()))
        with pytest.raises(SequenceTooLongError):
            await caller.do(train("long", "robust", "x" * 300))
        await caller.do(train("good", "robust"))
        assert (await caller.do(step("s", "robust"))).metrics["num_samples"] == 1
        with pytest.raises(InvalidRequestError):
            await caller.spawn("no-size", tiny, mode="training")
        with pytest.raises(UnknownModelError):
            await caller.spawn("nothing", "model_registry://nothing")
        await caller.do(Dealloc(id="dealloc", instance="robust"))


async def test_browsers_are_refused(worker: WorkerProcess) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(worker.url, origin="http://127.0.0.1:9100"):
            pass
    assert refused.value.response.status_code == 403


def test_a_taken_port_is_told(worker: WorkerProcess, tmp_path: Path) -> None:
    port = int(worker.url.rsplit(":", 1)[1])
    with start_worker(None, tmp_path, port=port) as second:
        assert second.wait() == 3
        assert f"127.0.0.1:{port}" in second.stderr.read_text()


async def test_a_spawned_instance_beside_a_served_model(tiny: Path, tmp_path: Path) -> None:
    with start_worker(tiny, tmp_path) as running:
        async with running.wait_ready().connect() as caller, running.connect() as watcher:
            first = await watcher.do(Describe(id="first"))
            await watcher.send(Describe(id="next", unlike=first.revision))
            await caller.spawn("beside", tiny, **TRAINING)
            changed = (await watcher.gather("next"))["next"].end
            assert {model.key for model in changed.models} == {"tiny", "beside"}
            assert changed.has_chat_template and changed.revision > first.revision
            assert (await caller.say(sampling=SamplingParams(max_tokens=3))).reason
            with pytest.raises(InvalidRequestError):
                await caller.spawn("tiny", tiny)
            with contextlib.suppress(UnknownModelError):
                await caller.do(Dealloc(id="dealloc", instance="tiny"))
            assert (await caller.say(sampling=SamplingParams(max_tokens=3))).reason
