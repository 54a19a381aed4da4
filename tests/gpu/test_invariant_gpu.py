"""Invariant mode on a GPU: the same bits in every batch, sampled, scored and trained, with graphs and without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers.models.qwen3 import Qwen3Config

from harmonia.config import CacheConfig, SchedulerConfig
from tests.unit.engine.invariance import MODELS, InvariantBench, Told
from tests.unit.models.tiny import CONFIGS, reference_model

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(900)]

# Large enough that products and attention are cut into several tiles and parts.
WIDE = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
CONFIGS["wide"] = lambda: Qwen3Config(**WIDE)
CASES = [
    ("wide", "bfloat16"),
    ("wide", "float32"),
    ("wide", "fp8"),
    ("qwen3_moe", "bfloat16"),
    ("gemma3-linear-softcap", "bfloat16"),
    ("llama-tied-bias", "float32"),
]


def runtime(folder: Path, family: str, precision: str, **config: object) -> InvariantBench:
    reference_model(family).save_pretrained(folder)
    settings = {
        "device": "cuda",
        "precision": precision,
        "cache": CacheConfig(kv_cache_len=8192),
        "scheduler": SchedulerConfig(max_batch_tokens=192, max_running=32, reserve_blocks=1),
        **config,
    }
    return InvariantBench(folder, **settings)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InvariantBench:
    family, precision = request.param
    return runtime(tmp_path_factory.mktemp("model"), family, precision)


def prompts(bench: InvariantBench, seed: int, count: int) -> list[Told]:
    """Requests of all models, of one token up to a third of the longest sequence; some begin alike."""
    rng = random.Random(seed)
    longest = min(330, bench.engine.plan.max_seq_len // 3)
    common = [rng.randrange(90) for _ in range(longest)]
    told = []
    for index in range(count):
        length = rng.choice((1, 2, 17, longest // 2, longest))
        own = [rng.randrange(90) for _ in range(length)]
        told.append(Told(MODELS[index % 3], tuple(common[: length // 2] + own)[:length]))
    return told


def sample_all(bench: InvariantBench, all_told: Sequence[Told], at_once: int, *, temperature: float = 1.0) -> None:
    """So many at a time, each group a few steps after the one before began."""
    seq_ids = []
    for index, told in enumerate(all_told):
        if at_once and index % at_once == 0:
            bench.drain()
        elif index % 5 == 4:
            bench.step()
        seq_ids.append(bench.ask(told, 24, temperature=temperature, seed=index))
    bench.drain()
    for told, seq_id in zip(all_told, seq_ids, strict=True):
        bench.collect(told, seq_id)


def test_sampled_scored_and_trained_are_the_same_bits(bench: InvariantBench) -> None:
    all_told = prompts(bench, seed=1, count=21)
    sample_all(bench, all_told, at_once=21)
    expected = [told.of_prompt + told.sampled for told in all_told]
    assert all(len(told.sampled) == 24 for told in all_told)
    assert bench.scores(all_told) == expected
    order = random.Random(2).sample(range(21), 21)
    for size, num_kept in ((21, 3), (4, 0), (1, 1)):
        for start in range(0, len(order), size):
            pack = order[start : start + size]
            assert bench.trained([all_told[index] for index in pack], num_kept) == [expected[index] for index in pack]


def test_an_answer_is_the_same_alone_and_in_any_batch(bench: InvariantBench) -> None:
    for temperature in (0.0, 1.0):
        answers = []
        for at_once in (1, 4, 18):
            all_told = prompts(bench, seed=3, count=18)
            sample_all(bench, all_told, at_once, temperature=temperature)
            answers.append(all_told)
        assert answers[0] == answers[1] == answers[2]


def test_graphs_change_nothing(tmp_path: Path) -> None:
    answers = []
    for graphs in (True, False):
        bench = runtime(tmp_path, "wide", "bfloat16", graphs=graphs)
        all_told = prompts(bench, seed=4, count=12)
        sample_all(bench, all_told, at_once=12)
        answers.append(all_told)
        del bench
        torch.cuda.empty_cache()
    assert answers[0] == answers[1]


def test_scores_of_a_scalar_head_are_the_same_in_any_batch(tmp_path: Path) -> None:
    bench = runtime(tmp_path, "wide", "bfloat16")
    bench.spawn("scorer", str(tmp_path), max_batch_size=512, use_adapter=True, scalar_head=True)
    head = bench.engine.backbone.instance("scorer").head
    assert head is not None
    with torch.no_grad():
        head.weight_E.normal_()
    tokens = [[*told.prompt, 5] for told in prompts(bench, seed=5, count=9)]
    alone = [bench.score("scorer", ids, scalar=True).tolist() for ids in tokens]
    again = [bench.score("scorer", ids[: len(ids) // 2 + 1], scalar=True).tolist() for ids in tokens]
    for whole, part in zip(alone, again, strict=True):
        assert whole[: len(part)] == part
