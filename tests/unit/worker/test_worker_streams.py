"""Requests from intake to their last message, with a device that only takes notes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from harmonia.config import WorkerConfig
from harmonia.engine.requests import SequenceError, SequenceOutput, TokenScore, unpack_ids
from harmonia.errors import InvalidRequestError, WorkerLostError
from harmonia.protocol.messages import (
    ChatPrompt,
    Constraint,
    Delta,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    TextPrompt,
    TokenPrompt,
)
from harmonia.protocol.sampling import SamplingParams
from harmonia.worker.intake import Intake, Limits
from harmonia.worker.link import Add, Command, Drop, Mask
from harmonia.worker.streams import Message, Streams
from tests.unit.worker.tiny_tokenizer import VOCAB_SIZE, byte_tokenizer

TOKENIZER = byte_tokenizer()
TOOL = {"type": "function", "function": {"name": "now"}}
HI = TextPrompt(text="Hi")


class Desk:
    """Intake and streams, what was sent to the device, and what the client got."""

    def __init__(self, executor: ThreadPoolExecutor, family: str = "llama") -> None:
        self.sent: list[Command] = []
        self.got: list[Message] = []
        self.streams = Streams(self, executor)
        config = WorkerConfig(model="x", key="m", socket="s")
        limits = Limits(family=family, vocab_size=VOCAB_SIZE, max_seq_len=100)
        self.intake = Intake(config, limits, TOKENIZER, self.streams, executor)

    def send(self, command: Command) -> None:
        self.sent.append(command)

    def deliver(self, message: Message) -> None:
        self.got.append(message)

    async def generate(self, **fields: object) -> list[int]:
        """Start a request; the ids of its sequences."""
        await self.intake.generate(Generate(**{"id": "r", "model": "m", "prompt": HI, **fields}), self, 0.0)
        return [request.seq_id for request in self.added]

    @property
    def added(self):
        return [command.request for command in self.sent if isinstance(command, Add)]

    def write(self, seq_id: int, text: str, **last: object) -> None:
        """One step per token; `last` belongs to the last one."""
        ids = TOKENIZER.encode(text, add_special=False)
        for place, token_id in enumerate(ids):
            extra = last if place == len(ids) - 1 else {}
            self.streams.take([SequenceOutput(seq_id=seq_id, token_ids=(token_id,), **extra)])

    @property
    def text(self) -> str:
        return "".join(message.text for message in self.got if isinstance(message, Delta))

    @property
    def deltas(self) -> list[Delta]:
        return [message for message in self.got if isinstance(message, Delta)]


@pytest.fixture
def desk():
    with ThreadPoolExecutor(1) as executor:
        yield Desk(executor)


async def test_text_streams_and_ends_with_usage(desk: Desk) -> None:
    (seq_id,) = await desk.generate(prompt=TokenPrompt(token_ids=(1, 2, 3)))
    desk.write(seq_id, "grün" + "<|im_end|>", finish_reason="stop")
    assert desk.text == "grün"
    assert desk.deltas[0].prompt_token_ids == (1, 2, 3)
    assert desk.deltas[-1].finish_reason == "stop"
    end = desk.got[-1]
    assert isinstance(end, Finished)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 6)
    assert len(desk.streams) == 0
    assert not any(isinstance(command, Drop) for command in desk.sent)


@pytest.mark.parametrize("stream", [True, False])
async def test_each_answer_says_what_was_proposed_to_it(desk: Desk, stream: bool) -> None:
    first, second = await desk.generate(n=2, stream=stream, num_draft_steps=3)
    assert [request.num_draft_steps for request in desk.added] == [3, 3]
    steps = [(first, 3, 1, None), (second, 2, 2, None), (first, 3, 0, "length"), (second, 0, 0, "length")]
    for seq_id, drafted, accepted, reason in steps:
        output = SequenceOutput(
            seq_id=seq_id, token_ids=(7,), num_drafted=drafted, num_accepted=accepted, finish_reason=reason
        )
        desk.streams.take([output])
    told = {delta.index: (delta.drafted_tokens, delta.accepted_tokens) for delta in desk.deltas if delta.finish_reason}
    assert told == {0: (6, 1), 1: (2, 2)}
    end = desk.got[-1]
    assert isinstance(end, Finished)
    assert (end.usage.drafted_tokens, end.usage.accepted_tokens) == (8, 3)


async def test_stop_string_drops_the_sequence_and_ignores_the_rest(desk: Desk) -> None:
    (seq_id,) = await desk.generate(sampling=SamplingParams(stop=("END",)))
    desk.write(seq_id, "so EN")
    assert desk.text == "so "
    desk.write(seq_id, "D and more")
    assert desk.text == "so "
    assert desk.deltas[-1].finish_reason == "stop"
    assert desk.sent[-1] == Drop((seq_id,))
    assert isinstance(desk.got[-1], Finished)
    assert desk.got[-1].usage.completion_tokens == 6


async def test_stop_strings_wait_for_min_tokens(desk: Desk) -> None:
    (seq_id,) = await desk.generate(sampling=SamplingParams(stop=("END",), min_tokens=5))
    desk.write(seq_id, "END, ENDEND and more")
    assert desk.text == "END, "
    assert isinstance(desk.got[-1], Finished)
    assert desk.got[-1].usage.completion_tokens == 8


async def test_incomplete_character_and_held_text_come_at_the_end(desk: Desk) -> None:
    (seq_id,) = await desk.generate(sampling=SamplingParams(stop=("END",)))
    desk.write(seq_id, "EN")
    first_byte = TOKENIZER.encode("€", add_special=False)[0]
    desk.streams.take([SequenceOutput(seq_id=seq_id, token_ids=(first_byte,), finish_reason="length")])
    assert desk.text == "EN\ufffd"


async def test_tool_calls_become_the_finish_reason(desk: Desk) -> None:
    prompt = ChatPrompt(messages=({"role": "user", "content": "?"},), tools=(TOOL,))
    (seq_id,) = await desk.generate(prompt=prompt, parse_tools=True)
    desk.write(seq_id, 'Wait.[TOOL_CALLS][{"name": "now", "arguments": {"tz": "é"}}]<|im_end|>', finish_reason="stop")
    assert desk.text == "Wait."
    (call,) = [call for delta in desk.deltas for call in delta.tool_calls]
    assert (call.name, call.arguments) == ("now", '{"tz": "é"}')
    assert desk.deltas[-1].finish_reason == "tool_calls"


async def test_special_tokens_are_text_only_for_tool_parsing(desk: Desk) -> None:
    (seq_id,) = await desk.generate()
    desk.write(seq_id, "a[TOOL_CALLS]b")
    assert desk.text == "ab"


async def test_a_stop_string_that_is_a_special_token_stops_at_it(desk: Desk) -> None:
    await desk.generate(sampling=SamplingParams(stop=("[TOOL_CALLS]",)))
    assert desk.added[0].sampling.stop_token_ids == (257,)
    assert desk.added[0].sampling.stop == ()


async def test_masks_follow_tokens_until_the_grammar_is_complete(desk: Desk) -> None:
    (seq_id,) = await desk.generate(constraint=Constraint(kind="regex", source="abc"))
    assert desk.added[0].constrained
    assert isinstance(desk.sent[-1], Mask) and desk.sent[-1].num_generated == 0
    desk.write(seq_id, "a")
    while not isinstance(desk.sent[-1], Mask) or desk.sent[-1].num_generated != 1:
        await asyncio.sleep(0.001)
    desk.write(seq_id, "b")
    desk.write(seq_id, "c")
    assert desk.deltas[-1].finish_reason == "stop"
    assert Drop((seq_id,)) in desk.sent


class PanicError(BaseException):
    """As libraries written in Rust end when they break down."""


async def test_a_grammar_that_breaks_down_fails_its_request_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    regex = Constraint(kind="regex", source="[ab]c")
    broken = await desk.intake.generate(Generate(id="broken", model="m", prompt=HI, constraint=regex), desk, 0.0)
    good = await desk.intake.generate(Generate(id="good", model="m", prompt=HI, constraint=regex), desk, 0.0)
    (first,), (second,) = broken.live, good.live

    def break_down(*_: object) -> None:
        raise PanicError("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(broken.guide(first), "ahead", break_down)
    (a,) = TOKENIZER.encode("a", add_special=False)
    desk.streams.take([SequenceOutput(seq_id=each, token_ids=(a,)) for each in (first, second)])
    async with asyncio.timeout(10):
        while not any(isinstance(command, Mask) and command.num_generated == 1 for command in desk.sent):
            await asyncio.sleep(0.001)
    assert [(item.id, item.code) for item in desk.got if isinstance(item, Failed)] == [("broken", "internal")]
    assert "Option::unwrap" in caplog.text


async def test_tokens_outside_the_grammar_fail_the_request(desk: Desk) -> None:
    (seq_id,) = await desk.generate(constraint=Constraint(kind="regex", source="abc"))
    desk.write(seq_id, "x")
    assert isinstance(desk.got[-1], Failed)
    assert desk.sent[-1] == Drop((seq_id,))


async def test_one_refused_answer_fails_the_whole_request_once(desk: Desk) -> None:
    first, second = await desk.generate(n=2)
    error = SequenceError("overloaded", "full", {"retry_after_s": 2.0})
    desk.streams.take([SequenceOutput(seq_id=first, error=error), SequenceOutput(seq_id=second, error=error)])
    assert desk.got == [Failed(id="r", code="overloaded", message="full", details={"retry_after_s": 2.0})]
    assert Drop((second,)) in desk.sent


async def test_our_own_mistake_fails_one_request_only(desk: Desk) -> None:
    seq_ids = await desk.generate(n=1)
    await desk.generate(id="other")
    other = desk.added[-1].seq_id
    desk.streams.take([SequenceOutput(seq_id=seq_ids[0], token_ids=(VOCAB_SIZE + 5,))])
    assert isinstance(desk.got[-1], Failed) and desk.got[-1].code == "internal"
    desk.write(other, "fine")
    assert desk.text == "fine"


async def test_cancel_and_loss(desk: Desk) -> None:
    work = await desk.intake.generate(Generate(id="r", model="m", prompt=HI, n=2), desk, 0.0)
    seq_ids = tuple(sorted(work.live))
    desk.streams.cancel(work)
    assert tuple(sorted(desk.sent[-1].seq_ids)) == seq_ids
    desk.write(seq_ids[0], "late")
    assert desk.got == []
    await desk.generate(id="s")
    desk.streams.fail_all(WorkerLostError("gone"))
    assert [message.code for message in desk.got] == ["worker_lost"]


async def test_answers_get_their_own_seeds_and_fitting_lengths(desk: Desk) -> None:
    sampling = SamplingParams(seed=2**63 - 1, min_tokens=500, prompt_logprobs=1)
    await desk.generate(sampling=sampling, n=2)
    first, second = (request.sampling for request in desk.added)
    assert (first.seed, second.seed) == (2**63 - 1, -(2**63))
    assert (first.max_tokens, first.min_tokens) == (98, 98)
    assert (first.prompt_logprobs, second.prompt_logprobs) == (1, None)


async def test_deadline_is_the_workers_unless_given(desk: Desk) -> None:
    await desk.generate()
    await desk.generate(id="s", max_ttft_ms=5)
    assert [request.ttft_deadline_s for request in desk.added] == [60.0, 0.005]


async def test_logprobs_name_tokens_and_bytes(desk: Desk) -> None:
    (seq_id,) = await desk.generate(sampling=SamplingParams(logprobs=0), stream=False)
    desk.write(seq_id, "ab", scores=(TokenScore(-0.5),), finish_reason="length")
    assert [delta.text for delta in desk.deltas] == ["ab"]
    (entry,) = desk.deltas[0].logprobs
    assert (entry.token, entry.token_bytes, entry.logprob, entry.top) == ("b", b"b", -0.5, ())


async def test_embeddings_keep_the_order_of_prompts(desk: Desk) -> None:
    await desk.intake.embed(Embed(id="e", model="m", prompts=(HI, TextPrompt(text="there"))), desk, 0.0)
    first, second = desk.added
    assert first.embed and len(unpack_ids(second.token_ids)) == 5
    desk.streams.take([SequenceOutput(seq_id=second.seq_id, embedding=b"2")])
    desk.streams.take([SequenceOutput(seq_id=first.seq_id, embedding=b"1")])
    (answer,) = desk.got
    assert isinstance(answer, Embedded)
    assert (answer.vectors, answer.usage.prompt_tokens) == ((b"1", b"2"), 7)


async def test_begin_of_text_is_not_doubled() -> None:
    with ThreadPoolExecutor(1) as executor:
        desk = Desk(executor)
        object.__setattr__(TOKENIZER, "prefix_ids", (256,))
        try:
            await desk.generate(prompt=TextPrompt(text="a"))
            await desk.generate(prompt=TextPrompt(text="<|im_end|>a"))
        finally:
            object.__setattr__(TOKENIZER, "prefix_ids", ())
    assert [unpack_ids(request.token_ids)[0] for request in desk.added] == [256, 256]
    assert [len(unpack_ids(request.token_ids)) for request in desk.added] == [2, 2]


async def test_a_model_without_template_says_so() -> None:
    with ThreadPoolExecutor(1) as executor:
        desk = Desk(executor)
        desk.intake.tokenizer = byte_tokenizer(template=None)
        with pytest.raises(InvalidRequestError, match="no chat template"):
            await desk.generate(prompt=ChatPrompt(messages=({"role": "user", "content": "x"},)))
