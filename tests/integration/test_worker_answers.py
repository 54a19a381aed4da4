"""What a worker answers, asked over its real socket."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from harmonia.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    SequenceTooLongError,
    UnavailableError,
    UnknownModelError,
)
from harmonia.protocol.messages import (
    ChatPrompt,
    CloseSession,
    Constraint,
    Describe,
    Description,
    Done,
    Embed,
    Embedded,
    Generate,
    LoadAdapter,
    Step,
    TextPrompt,
    TokenPrompt,
    UnloadAdapter,
)
from harmonia.protocol.sampling import SamplingParams
from tests.integration.tiny_model import MAX_LEN, VOCAB_SIZE
from tests.integration.worker_client import FREE, Caller, WorkerProcess, start_worker

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
HI = TextPrompt(text="Hi there")


@pytest.fixture(scope="module")
def worker(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with start_worker(tiny, tmp_path_factory.mktemp("worker")) as running:
        yield running.wait_ready()


@pytest_asyncio.fixture
async def caller(worker: WorkerProcess) -> AsyncIterator[Caller]:
    async with worker.connect() as connected:
        yield connected


async def test_answer_streams_one_delta_per_token(caller: Caller) -> None:
    answers = await caller.say(prompt=HI, sampling=GREEDY)
    assert [len(delta.token_ids) for delta in answers.deltas] == [1] * 24
    assert answers.deltas[0].prompt_token_ids
    assert all(not delta.prompt_token_ids for delta in answers.deltas[1:])
    assert answers.reason == "length"
    assert (answers.finished.usage.prompt_tokens, answers.finished.usage.completion_tokens) == (8, 24)
    assert set(answers.finished.timings_ms) == {"queue", "ttft", "total"}


async def test_whole_answer_equals_the_stream(caller: Caller) -> None:
    stream = await caller.say(prompt=HI, sampling=GREEDY)
    whole = await caller.say(prompt=HI, sampling=GREEDY, stream=False)
    assert len(whole.deltas) == 1
    assert (whole.text(), whole.ids()) == (stream.text(), stream.ids())
    assert "\ufffd" not in whole.text()[:-1] or "\ufffd" in whole.text()


async def test_n_answers_share_a_prompt_and_count_once(caller: Caller) -> None:
    sampling = SamplingParams(temperature=1, seed=7, max_tokens=8, ignore_eos=True)
    many = await caller.say(prompt=HI, sampling=sampling, n=3)
    assert len({many.ids(index) for index in range(3)}) == 3
    second = await caller.say(prompt=HI, sampling=SamplingParams(temperature=1, seed=8, max_tokens=8, ignore_eos=True))
    assert second.ids() == many.ids(1)
    assert many.finished.usage.prompt_tokens == 8
    assert many.finished.usage.completion_tokens == 24


async def test_stop_string_ends_the_answer_before_it(caller: Caller) -> None:
    text = (await caller.say(prompt=HI, sampling=GREEDY)).text()
    stop = text[5:8]
    answers = await caller.say(prompt=HI, sampling=SamplingParams(temperature=0, ignore_eos=True, stop=(stop,)))
    assert answers.text() == text[: text.index(stop)]
    assert answers.reason == "stop"
    await caller.until_quiet()


async def test_end_token_ends_the_answer_and_is_no_text(caller: Caller) -> None:
    last = (await caller.say(prompt=HI, sampling=GREEDY)).ids()[5]
    sampling = SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=(last,))
    answers = await caller.say(prompt=HI, sampling=sampling)
    assert answers.reason == "stop"
    assert answers.ids()[-1] == last
    assert len(answers.deltas[-1].token_ids) == 1


async def test_logprobs_of_answer_and_prompt(caller: Caller) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    answers = await caller.say(prompt=HI, sampling=sampling, n=2)
    first = answers.deltas[0]
    assert [entry.token for entry in first.prompt_logprobs] == list("Hi there")
    assert first.prompt_logprobs[0].logprob is None
    assert all(entry.logprob < 0 for entry in first.prompt_logprobs[1:])
    for delta in answers.deltas:
        (entry,) = delta.logprobs
        assert entry.token_id == delta.token_ids[0] == entry.top[0][0]
        assert len(entry.top) == 2
    assert not any(delta.prompt_logprobs for delta in answers.deltas if delta.index == 1)


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
}


@pytest.mark.parametrize(
    ("constraint", "follows"),
    [
        (Constraint(kind="json_schema", source=json.dumps({**SCHEMA, "additionalProperties": False})), None),
        (Constraint(kind="regex", source="[a-c]{5}"), "[a-c]{5}"),
        (Constraint(kind="lark", source='start: "yes" | "no"'), "yes|no"),
    ],
)
async def test_answers_follow_grammars_and_end_with_them(caller: Caller, constraint, follows) -> None:
    sampling = SamplingParams(temperature=1, seed=1, max_tokens=200, ignore_eos=True)
    answers = await caller.say("Answer.", constraint=constraint, sampling=sampling, n=2)
    for index in range(2):
        text = answers.text(index)
        if follows:
            assert re.fullmatch(follows, text), text
        elif len(answers.ids(index)) < 200:  # a random model may write a number without end
            assert set(json.loads(text)) == {"n", "ok"}
    assert answers.deltas[-1].finish_reason in ("stop", "length")


async def test_json_object_has_no_endless_space(caller: Caller) -> None:
    sampling = SamplingParams(temperature=1, seed=3, max_tokens=120)
    answers = await caller.say("JSON, please.", constraint=Constraint(kind="json_object"), sampling=sampling)
    assert answers.text().startswith("{")
    outside = re.sub(r'"(?:[^"\\]|\\.)*("|$)', "", answers.text())
    assert not re.search(r"\s{18}", outside)


async def test_embeddings_are_unit_vectors_of_each_prompt(caller: Caller) -> None:
    prompts = (HI, TextPrompt(text="Something else"), TokenPrompt(token_ids=(1, 2, 3)))
    answer = (await caller.ask(Embed(id="e", model="tiny", prompts=prompts))).end
    assert isinstance(answer, Embedded)
    vectors = [np.frombuffer(vector, "<f4") for vector in answer.vectors]
    assert [len(vector) for vector in vectors] == [64, 64, 64]
    assert np.allclose([np.linalg.norm(vector) for vector in vectors], 1, atol=1e-4)
    assert answer.usage.prompt_tokens == 8 + 14 + 3


async def test_adapters_come_and_go(caller: Caller, tiny_adapters: tuple[Path, ...]) -> None:
    base = await caller.say(prompt=HI, sampling=GREEDY)
    assert isinstance((await caller.ask(LoadAdapter(id="l", key="a", path=str(tiny_adapters[0])))).end, Done)
    with_adapter = await caller.ask(Generate(id="g", model="a", prompt=HI, sampling=GREEDY))
    assert with_adapter.ids() != base.ids()
    description = (await caller.ask(Describe(id="d"))).end
    assert isinstance(description, Description)
    assert [(model.key, model.parent) for model in description.models] == [("tiny", None), ("a", "tiny")]
    await caller.send(Generate(id="long", model="a", prompt=HI, sampling=FREE, n=4))
    assert isinstance(await caller.receive(), Step)
    await caller.send(UnloadAdapter(id="u", key="a"))
    ends = await caller.gather("long", "u")
    assert isinstance(ends["u"].end, Done)
    assert isinstance(ends["long"].error, UnavailableError)
    assert isinstance((await caller.ask(Generate(id="after", model="a", prompt=HI))).error, UnknownModelError)
    broken = await caller.ask(LoadAdapter(id="b", key="b", path="/nowhere"))
    assert isinstance(broken.error, InvalidRequestError)


async def test_session_reuses_the_cache_and_can_be_closed(caller: Caller) -> None:
    turn = "Tell me about the sea, its tides and its storms."
    await caller.say(turn, sampling=GREEDY, session_id="s")
    again = await caller.say(turn, sampling=GREEDY, session_id="s")
    assert again.finished.usage.cached_tokens > 0
    assert isinstance((await caller.ask(CloseSession(id="c", session_id="s"))).end, Done)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": TokenPrompt(token_ids=())}, "empty"),
        ({"prompt": TextPrompt(text="")}, "empty"),
        ({"prompt": TokenPrompt(token_ids=(1, VOCAB_SIZE))}, f"got {VOCAB_SIZE}"),
        ({"prompt": TokenPrompt(token_ids=(-1,))}, "got -1"),
        ({"prompt": ChatPrompt(messages=())}, "at least one message"),
        ({"prompt": ChatPrompt(messages=({"role": "user", "content": [{"type": "image_url"}]},))}, "images are not"),
        ({"n": 0}, "n must be between 1 and 128"),
        ({"n": 129}, "got 129"),
        ({"max_ttft_ms": -1}, "max_ttft_ms"),
        ({"sampling": SamplingParams(temperature=-1)}, "temperature must be"),
        ({"sampling": SamplingParams(top_p=float("nan"))}, "top_p must be"),
        ({"sampling": SamplingParams(logprobs=21)}, "logprobs must be"),
        ({"sampling": SamplingParams(stop=("",))}, "stop must hold"),
        ({"constraint": Constraint(kind="poem")}, "got 'poem'"),
        ({"constraint": Constraint(kind="json_schema", source="{")}, "response_format"),
        ({"constraint": Constraint(kind="json_schema", source='{"type": "nothing"}')}, "Invalid type: nothing"),
        ({"constraint": Constraint(kind="json_schema", source='{"items":' * 5000 + "{}" + "}" * 5000)}, "nested 5001"),
        ({"constraint": Constraint(kind="regex", source="(a")}, "unclosed group"),
        ({"constraint": Constraint(kind="regex", source="a" * 300_000)}, "300000 bytes"),
    ],
)
async def test_bad_requests_are_named(caller: Caller, fields: dict, says: str) -> None:
    answers = await caller.say(**fields)
    assert isinstance(answers.error, InvalidRequestError)
    assert says in answers.error.message
    assert not answers.deltas


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (TokenPrompt(token_ids=(1,) * MAX_LEN), str(MAX_LEN)),
        (TextPrompt(text="x" * 600), "600"),
        (TextPrompt(text="x" * 2_000_000), "at least"),
    ],
)
async def test_long_prompts_are_refused_with_both_numbers(caller: Caller, prompt, says: str) -> None:
    error = (await caller.say(prompt=prompt)).error
    assert isinstance(error, SequenceTooLongError)
    assert says in error.message and str(MAX_LEN) in error.message


async def test_answer_goes_to_the_models_limit_by_default(caller: Caller) -> None:
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    answers = await caller.say(prompt=TokenPrompt(token_ids=(5,) * (MAX_LEN - 3)), sampling=sampling)
    assert len(answers.ids()) == 3
    assert answers.reason == "length"


async def test_late_first_token_is_a_deadline_error(caller: Caller) -> None:
    assert isinstance((await caller.say(max_ttft_ms=0)).error, DeadlineExceededError)


async def test_a_repeated_id_is_answered_once(caller: Caller) -> None:
    request = Generate(id="same", model="tiny", prompt=HI, sampling=GREEDY)
    await caller.send(request)
    first = await caller.ask(request)
    await caller.send(request)
    assert len(first.ids()) == 24
    assert isinstance((await caller.ask(Describe(id="d"))).end, Description)  # and nothing in between
