"""Proposals change when tokens come, never which: every answer equals that of the same model without a draft."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine import graph_plan
from harmonia.engine.batch import Batch
from harmonia.engine.proposer import Proposer
from harmonia.engine.requests import SaveRequest
from harmonia.engine.runtime import Runtime
from harmonia.engine.speculation import Choice, Speculation
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from tests.unit.engine.runtime import CONFIG, Bench, Reply, sample
from tests.unit.models.tiny import SIZES, VOCAB, reference_model

SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 1.0, "logit_bias": {5: 3.0}, "min_tokens": 6, "stop_token_ids": (5, 6)},
    {"temperature": 0.8, "logprobs": 2},
]
OTHER_SIZES = {
    "padded": {"vocab_size": VOCAB + 16},
    "unpadded": {"vocab_size": VOCAB - 16},
    "short": {"max_position_embeddings": 48},
}
"""Drafts that differ in what need not be the same."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft that is nearly the same, and one that knows nothing of it."""
    folder = tmp_path_factory.mktemp("models")
    model = reference_model("llama")
    model.save_pretrained(folder / "target")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.003)
    model.save_pretrained(folder / "near")
    reference_model("qwen3").save_pretrained(folder / "far")
    for name, changes in OTHER_SIZES.items():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).save_pretrained(folder / name)
    return folder


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Some share a beginning; some are longer than a step has room for; some repeat themselves."""
    random = np.random.default_rng(seed)
    stem = random.integers(1, VOCAB, 40).tolist()
    loops = [random.integers(1, VOCAB, 5).tolist() * 6 for _ in range(3)]
    kinds = [stem[:32], [], loops[0], stem, loops[1], []]
    return [kinds[index % 6] + random.integers(1, VOCAB, random.integers(2, 30)).tolist() for index in range(count)]


def begin_all(bench: Bench, name: str, asked: list[list[int]], max_tokens: int = 20) -> list[int]:
    """Every prompt with other settings."""
    seq_ids = []
    for index, prompt in enumerate(asked):
        settings = {"seed": index, **SAMPLINGS[index % len(SAMPLINGS)]}
        seq_ids.append(bench.begin(name, prompt, max_tokens, **settings))
    return seq_ids


def answers(bench: Bench, seq_ids: list[int]) -> list[tuple[list[int], list[float | None], str | None]]:
    """Tokens, log-probabilities and the reason of the end."""
    return [
        (
            bench.tokens(seq_id),
            [score.logprob for output in bench.outputs[seq_id] for score in output.scores],
            bench.outputs[seq_id][-1].finish_reason,
        )
        for seq_id in seq_ids
    ]


def num_accepted(bench: Bench, key: str) -> tuple[float, float]:
    """(proposed, accepted) tokens of a model."""
    counters = bench.runtime.stats().by_model[key]
    return counters.get("drafted_tokens", 0), counters.get("accepted_tokens", 0)


INVARIANT = replace(CONFIG, invariant=True)
TIGHT = replace(INVARIANT, cache=CacheConfig(kv_cache_len=160, block_size=16))
"""Sequences are preempted again and again."""


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of proposals, one after the other: how many pay depends on how long steps take."""
    turn = itertools.count(3)
    monkeypatch.setattr(
        Speculation, "choose", lambda self, count, share, most: Choice(count, max(0, min(next(turn) % 9, most)))
    )


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize(
    ("draft", "config"),
    [
        *(pytest.param(draft, INVARIANT, id=f"{draft}-roomy") for draft in ("near", "far", "ngram", *OTHER_SIZES)),
        *(pytest.param(draft, TIGHT, id=f"{draft}-tight") for draft in ("near", "ngram")),
    ],
)
def test_answers_are_the_same_with_a_draft(folder: Path, draft: str, config: EngineConfig) -> None:
    plain, drafted = Bench(config), Bench(config)
    target = str(folder / "target")
    plain.spawn("it", target)
    drafted.spawn("it", target, draft=draft if draft == "ngram" else str(folder / draft), num_draft_steps=5)
    for seed in range(2):
        asked = prompts(16, seed)
        wanted, got = begin_all(plain, "it", asked), begin_all(drafted, "it", asked)
        plain.drain()
        drafted.drain()
        assert answers(drafted, got) == answers(plain, wanted)
    if config is TIGHT:
        assert drafted.runtime.stats().counters["preemptions"] > 0
    assert drafted.runtime.stats().counters["prefix_hit_tokens"] > 0
    proposed, accepted = num_accepted(drafted, "it")
    assert proposed > 0
    assert proposed / 5 < accepted < proposed if draft == "near" else accepted < proposed, (proposed, accepted)


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize("config", [INVARIANT, TIGHT], ids=["roomy", "tight"])
def test_a_draft_that_is_the_target_is_always_right(folder: Path, config: EngineConfig) -> None:
    """Or its cache has lost step: with prefix hits, chunks of prompts, preemption, and proposals that come and go."""
    bench = Bench(config)
    bench.spawn("it", str(folder / "target"), draft=str(folder / "target"), num_draft_steps=8)
    for seed in range(4):
        for index, prompt in enumerate(prompts(12, seed)):
            bench.begin("it", prompt, 30, seed=index, **SAMPLINGS[index % 4])
            for _ in range(index % 3):
                bench.step()
        bench.drain()
    proposed, accepted = num_accepted(bench, "it")
    assert proposed > 200 and accepted == proposed


def test_all_passes_of_a_draft_are_single_tokens_once_it_knows_the_prompts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that on a GPU each is a captured graph: of a sequence it lacks one token or, where all were right, two."""
    monkeypatch.setattr(Speculation, "choose", lambda self, count, share, most: Choice(count, min(3, most)))
    bench = Bench(INVARIANT)
    bench.spawn("it", str(folder / "target"), draft=str(folder / "near"), num_draft_steps=4)
    runner = bench.runtime._lanes.of("it").engine._runner
    assert runner.proposer is not None
    passes = list[Batch]()
    monkeypatch.setattr(runner, "proposer", Watched(runner.proposer, passes.append))
    for index, prompt in enumerate(prompts(6)):
        bench.begin("it", prompt, 30, seed=index, **SAMPLINGS[index % 4])
    bench.drain()
    known = [batch for batch in passes if all(row.start >= row.sequence.num_prompt for row in batch.rows)]
    assert len(known) > 20
    assert all(batch.has_single_tokens for batch in known)
    widths = {len(batch.rows) / len(batch.work) for batch in known}
    assert 1.0 in widths and max(widths) > 1, "some lacked two tokens"
    assert max(item.count for batch in known for item in batch.work) == 2


class Watched:
    """A proposer whose batches somebody sees."""

    def __init__(self, proposer: Proposer, see: Callable[[Batch], None]) -> None:
        self.model, self.steps, self._proposer, self._see = proposer.model, proposer.steps, proposer, see

    def __call__(self, batch: Batch) -> None:
        self._see(batch)
        self._proposer(batch)


@pytest.mark.parametrize("rows", [1, 12, 40])
def test_answers_do_not_depend_on_the_rows_that_there_is_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Few proposals, for some sequences only, or none at all."""
    monkeypatch.setattr(graph_plan, "_VERIFIED_ROWS", rows)
    config = replace(INVARIANT, scheduler=replace(INVARIANT.scheduler, max_running=8))
    plain, drafted = Bench(config), Bench(config)
    plain.spawn("it", str(folder / "target"))
    drafted.spawn("it", str(folder / "target"), draft=str(folder / "near"), num_draft_steps=6)
    asked = prompts(14)
    wanted, got = begin_all(plain, "it", asked), begin_all(drafted, "it", asked)
    plain.drain()
    drafted.drain()
    assert answers(drafted, got) == answers(plain, wanted)


def test_batches_mix_those_with_and_without_a_draft(folder: Path) -> None:
    """Adapters on the target, proposals that are looked up, and none at all; updates between them."""
    target, draft = str(folder / "target"), str(folder / "near")
    plain, mixed = Bench(INVARIANT), Bench(INVARIANT)
    for bench, drafts in ((plain, {}), (mixed, {"draft": draft, "num_draft_steps": 3})):
        bench.spawn("drafted", target, **drafts)
        bench.spawn("trained", target, rank=4, seed=1, **drafts)
        bench.spawn("bare", target)
    mixed.spawn("found", target, draft="ngram")
    plain.spawn("found", target)
    for round_ in range(3):
        for bench in (plain, mixed):
            bench.train("trained", [sample(list(range(1, 30)))])
            bench.optim_step("trained", lr=2e-2)
        seq_ids = []
        for bench in (plain, mixed):
            asked = prompts(16, round_)
            names = ["drafted", "trained", "bare", "found"]
            seq_ids.append([begin_all(bench, names[index % 4], [prompt])[0] for index, prompt in enumerate(asked)])
            bench.drain()
        assert answers(mixed, seq_ids[1]) == answers(plain, seq_ids[0])
    assert num_accepted(mixed, "drafted")[0] > 0 and num_accepted(mixed, "trained")[0] > 0
    assert num_accepted(mixed, "bare") == (0, 0)


def test_cancelled_answers_leave_the_others_alone(folder: Path) -> None:
    plain, drafted = Bench(INVARIANT), Bench(INVARIANT)
    plain.spawn("it", str(folder / "target"))
    drafted.spawn("it", str(folder / "target"), draft=str(folder / "near"))
    asked = prompts(12)
    wanted, got = begin_all(plain, "it", asked), begin_all(drafted, "it", asked)
    plain.drain()
    for _ in range(6):
        drafted.step()
    for seq_id in got[::3]:
        drafted.runtime.cancel(seq_id)
    drafted.drain()
    kept = [index for index in range(12) if index % 3]
    assert answers(drafted, [got[i] for i in kept]) == answers(plain, [wanted[i] for i in kept])
    assert drafted.runtime.describe() and not drafted.runtime.has_work


def test_an_instance_without_a_draft_shares_the_backbone_of_one_with(folder: Path) -> None:
    bench = Bench()
    with_draft = bench.spawn("a", str(folder / "target"), draft=str(folder / "near"))
    without = bench.spawn("b", str(folder / "target"))
    assert with_draft["instance"]["backbone"] == without["instance"]["backbone"]  # type: ignore[index]


def test_adapters_of_a_served_model_share_its_draft(folder: Path, tmp_path: Path) -> None:
    trained = Bench()
    trained.spawn("a", str(folder / "target"), rank=4, seed=3)
    saved = Reply()
    trained.runtime.save(SaveRequest(instance="a", folder=str(tmp_path / "a")), saved)
    trained.wait(saved)
    plain, drafted = Bench(), Bench()
    for bench, draft in ((plain, None), (drafted, str(folder / "near"))):
        bench.runtime = Runtime.load(str(folder / "target"), "it", replace(INVARIANT, draft=draft))
        bench.runtime.load_adapter("a", str(tmp_path / "a"))
    seq_ids = [begin_all(bench, "a", prompts(6)) for bench in (plain, drafted)]
    plain.drain()
    drafted.drain()
    assert answers(drafted, seq_ids[1]) == answers(plain, seq_ids[0])
    assert num_accepted(drafted, "a")[0] > 0


def test_the_plan_counts_the_draft(folder: Path) -> None:
    spawned = Bench().spawn("it", str(folder / "target"), draft=str(folder / "near"))
    plain = Bench().spawn("it", str(folder / "target"))
    rows = {row["name"]: row["num_bytes"] for row in spawned["plan"]["rows"]}  # type: ignore[index, union-attr]
    bare = {row["name"]: row["num_bytes"] for row in plain["plan"]["rows"]}  # type: ignore[index, union-attr]
    assert rows["draft: weights"] == sum(size for name, size in bare.items() if name.startswith("weights"))
    assert rows["key/value cache"] == 2 * bare["key/value cache"]
    with pytest.raises(InsufficientMemoryError, match="no draft saves"):
        Bench(replace(CONFIG, memory_fraction=1e-9)).spawn("it", str(folder / "target"), draft=str(folder / "near"))


@pytest.mark.parametrize("steps", [0, 9, -1])
def test_numbers_of_steps_that_cannot_be_are_refused(folder: Path, steps: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"from 1 to 8, got {steps}"):
        Bench().spawn("it", str(folder / "target"), draft="ngram", num_draft_steps=steps)
