"""Answers under a grammar with proposals: the same as without, token for token, through intake, streams and engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from harmonia.config import CacheConfig, EngineConfig, WorkerConfig
from harmonia.engine.speculation import Choice, Speculation
from harmonia.protocol.messages import Constraint, Delta, Finished, Generate, TokenPrompt
from harmonia.protocol.sampling import SamplingParams
from harmonia.worker.intake import Intake, Limits
from harmonia.worker.link import Add, Command, Drop, Mask
from harmonia.worker.streams import Message, Streams, Work
from tests.unit.engine.runtime import CONFIG, Bench
from tests.unit.models.tiny import SIZES
from tests.unit.worker.tiny_tokenizer import VOCAB_SIZE, byte_tokenizer

TOKENIZER = byte_tokenizer()
INVARIANT = replace(CONFIG, invariant=True)
TIGHT = replace(INVARIANT, cache=CacheConfig(kv_cache_len=320, block_size=16))
"""Sequences are preempted again and again."""
MAX_LEN = 256


def schema(source: object) -> Constraint:
    return Constraint(kind="json_schema", source=json.dumps(source))


def record(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


FLAG, DIGIT = {"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}
COLOUR = record(colour={"enum": ["red", "green", "blue"]}, is_warm=FLAG)
CONSTRAINTS = [
    schema(record(is_married=FLAG, number_of_children=DIGIT)),
    schema(record(colours={"type": "array", "items": COLOUR, "minItems": 2, "maxItems": 3})),
    schema(record(name={"type": "string", "maxLength": 6}, partner={"anyOf": [COLOUR, {"type": "null"}]})),
    Constraint(kind="json_object", source=""),
    Constraint(kind="regex", source=r"(yes, of course|no, thank you)[.!]{1,3} Bye[.]"),
    Constraint(kind="lark", source='start: "begin " item ("; " item){2} " end"\nitem: "alpha" | "beta" | /[0-9]{2}/'),
]
SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=20, seed=2, logprobs=2),
    SamplingParams(temperature=0.9, repetition_penalty=1.2, frequency_penalty=0.3, seed=3),
    SamplingParams(temperature=1.2, min_p=0.05, seed=4, stop=("e", "n, ")),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of random weights that reads bytes."""
    folder: Path = tmp_path_factory.mktemp("models") / "target"
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": VOCAB_SIZE, "max_position_embeddings": MAX_LEN}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    return str(folder)


class Desk:
    """Both halves of a worker in one process, and what its clients got."""

    def __init__(self, target: str, executor: ThreadPoolExecutor, config: EngineConfig, **draft: object) -> None:
        self.bench = Bench(config)
        self.bench.spawn("it", target, **draft)
        self.got: dict[str, list[Message]] = {}
        self.masks: list[Mask] = []
        self.streams = Streams(self, executor)
        limits = Limits(family="llama", vocab_size=VOCAB_SIZE, max_seq_len=MAX_LEN)
        self.intake = Intake(WorkerConfig(model=target, key="it", socket=""), limits, TOKENIZER, self.streams, executor)

    def send(self, command: Command) -> None:
        """What streams want of the device."""
        match command:
            case Add(request):
                self.bench.runtime.add(request)
            case Mask(seq_id, num_generated, allowed, proposals):
                self.masks.append(command)
                self.bench.runtime.provide_mask(seq_id, num_generated, allowed, proposals)
            case Drop(seq_ids):
                for seq_id in seq_ids:
                    self.bench.runtime.cancel(seq_id)

    def deliver(self, message: Message) -> None:
        self.got.setdefault(message.id, []).append(message)

    async def ask(self, name: str, prompt: str, **fields: object) -> Work:
        ids = TokenPrompt(token_ids=tuple(TOKENIZER.encode(prompt, add_special=False)))
        return await self.intake.generate(Generate(id=name, model="it", prompt=ids, **fields), self, time.monotonic())  # type: ignore[arg-type]

    async def step(self) -> None:
        self.streams.take(self.bench.runtime.step())
        await asyncio.sleep(0 if not self.bench.runtime.stalled else 0.001)

    async def drain(self) -> None:
        async with asyncio.timeout(300):
            while len(self.streams):
                await self.step()

    def answers(self, name: str) -> list[tuple[object, ...]]:
        """Tokens, text, log-probabilities and the reason of the end, by index."""
        deltas = [message for message in self.got[name] if isinstance(message, Delta)]
        return [
            (each.index, each.token_ids, each.text, [item.logprob for item in each.logprobs], each.finish_reason)
            for each in sorted(deltas, key=lambda delta: delta.index)
        ]

    def usage(self, name: str) -> tuple[int, int]:
        """(proposed, accepted) tokens of a request."""
        end = self.got[name][-1]
        assert isinstance(end, Finished), end
        return end.usage.drafted_tokens, end.usage.accepted_tokens


@pytest.fixture
async def executor() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def drafts(target: str) -> dict[str, dict[str, object]]:
    return {
        "model": {"draft": target, "num_draft_steps": 4},
        "ngram": {"draft": "ngram", "num_draft_steps": 8},
    }


async def ask_all(desk: Desk) -> list[str]:
    """Every grammar with every setting, some twice at once, between answers without a grammar."""
    names = []
    for number, constraint in enumerate([*CONSTRAINTS, None]):
        for place, sampling in enumerate(SAMPLINGS):
            names.append(f"{number}-{place}")
            settings = replace(sampling, max_tokens=40 + 8 * place)
            await desk.ask(
                names[-1],
                f"Reply {number % 3}, as in 'colour': " + "and again " * place,
                constraint=constraint,
                sampling=settings,
                stream=False,
                n=1 + place % 2,
            )
            for _ in range(place % 3):
                await desk.step()
    await desk.drain()
    return names


@pytest.mark.parametrize("kind", ["model", "ngram"])
@pytest.mark.parametrize("config", [INVARIANT, TIGHT], ids=["roomy", "tight"])
async def test_answers_are_the_same_with_proposals(
    target: str, executor: ThreadPoolExecutor, kind: str, config: EngineConfig
) -> None:
    plain = Desk(target, executor, config)
    drafted = Desk(target, executor, config, **drafts(target)[kind])
    names = await ask_all(plain)
    assert await ask_all(drafted) == names
    for name in names:
        assert drafted.answers(name) == plain.answers(name), name
    assert {plain.usage(name) for name in names} == {(0, 0)}
    under_grammars = [drafted.usage(name) for name in names if not name.startswith(str(len(CONSTRAINTS)))]
    proposed, accepted = (sum(counts) for counts in zip(*under_grammars, strict=True))
    assert proposed / 5 < accepted < proposed, (proposed, accepted)
    if config is TIGHT:
        assert drafted.bench.runtime.stats().counters["preemptions"] > 0
    assert drafted.bench.runtime.stats().counters["prefix_hit_tokens"] > 0


async def test_what_the_grammar_forces_takes_few_steps(
    target: str, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token of a hundred is the model's own choice. It is settled here that proposals pay, not measured."""
    monkeypatch.setattr(Speculation, "choose", lambda self, count, share, most: Choice(count, min(4, most)))
    desk = Desk(target, executor, INVARIANT, **drafts(target)["ngram"])
    constraint = Constraint(kind="regex", source="a" + "bcdefghij" * 11 + "[yz]!")
    await desk.ask("it", "Say it.", constraint=constraint, sampling=SamplingParams(temperature=1.0))
    await desk.drain()
    proposed, accepted = desk.usage("it")
    assert proposed == accepted > 50
    assert len(desk.masks) < 50


async def test_cancelled_answers_leave_the_others_alone(target: str, executor: ThreadPoolExecutor) -> None:
    plain, drafted = Desk(target, executor, INVARIANT), Desk(target, executor, INVARIANT, **drafts(target)["model"])
    for desk in (plain, drafted):
        works = [
            await desk.ask(f"{number}", "Answer.", constraint=CONSTRAINTS[1], sampling=SAMPLINGS[1], stream=False)
            for number in range(6)
        ]
        for _ in range(9):
            await desk.step()
        for work in works[::2]:
            desk.streams.cancel(work)
        await desk.drain()
        assert not desk.bench.runtime.has_work
    for name in "135":
        assert drafted.answers(name) == plain.answers(name)
    assert drafted.usage("1")[1] > 0


async def test_sampled_answers_are_distributed_as_without_proposals(target: str, executor: ThreadPoolExecutor) -> None:
    """With other seeds on both sides: chance alone tells them apart."""
    constraint = schema(record(a={"enum": ["x", "y"]}, b=DIGIT))
    counts = []
    for first_seed, draft in ((0, {}), (10_000, drafts(target)["ngram"])):
        desk = Desk(target, executor, INVARIANT, **draft)
        for number in range(20):
            sampling = SamplingParams(temperature=1.0, seed=first_seed + 16 * number)
            await desk.ask(f"{number}", "Choose.", constraint=constraint, sampling=sampling, stream=False, n=16)
        await desk.drain()
        texts = [str(text) for number in range(20) for _, _, text, *_ in desk.answers(f"{number}")]
        counts.append(Counter(tuple(json.loads(text).values()) for text in texts))
    common = [kind for kind, count in (counts[0] + counts[1]).items() if count >= 10]
    assert len(common) > 5
    # Of two samples of one size; squared differences over sums are a chi-square of as many degrees as there are kinds.
    distance = sum((counts[0][kind] - counts[1][kind]) ** 2 / (counts[0] + counts[1])[kind] for kind in common)
    degrees = len(common)
    unlikely = degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3
    assert distance < unlikely, counts  # one in a thousand
    assert desk.usage("0")[1] > 0
