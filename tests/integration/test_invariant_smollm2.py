"""A real model with large logits: what is sampled, scored and trained are the same log-probabilities."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harmonia.config import CacheConfig, SchedulerConfig
from tests.unit.engine.invariance import MODELS, InvariantBench, Told

NUM_TOKENS = 12


@pytest.mark.parametrize("invariant", [True, False], ids=["invariant", "as it is by default"])
def test_every_path_sees_the_same_bits(smollm2: Path, invariant: bool) -> None:
    bench = InvariantBench(
        smollm2,
        invariant=invariant,
        cache=CacheConfig(kv_cache_len=1536),
        scheduler=SchedulerConfig(max_batch_tokens=150, max_running=8, reserve_blocks=1),
    )
    if not invariant and bench.engine.backbone.decoder.layers[0].attention.qkv.weight.panels_XKP is None:
        pytest.skip("here oneDNN multiplies, whose sums depend on the batch, unless the mode is invariant")
    rng = random.Random(5)
    common = [rng.randrange(300, 40_000) for _ in range(70)]
    all_told = [
        Told(MODELS[index % 3], tuple(common[: 10 * index] + [rng.randrange(300, 40_000) for _ in range(40)]))
        for index in range(6)
    ]
    for number in range(2):  # the second time the prompts are in the cache
        seq_ids = [bench.ask(told, NUM_TOKENS, temperature=1.0, seed=index) for index, told in enumerate(all_told)]
        bench.drain()
        before = [told.of_prompt + told.sampled for told in all_told]
        for told, seq_id in zip(all_told, seq_ids, strict=True):
            bench.collect(told, seq_id)
        expected = [told.of_prompt + told.sampled for told in all_told]
        assert number == 0 or expected == before
    assert bench.scores(all_told) == expected
    assert bench.trained(all_told, num_kept=30) == expected
    assert bench.trained(all_told[1:3], num_kept=0) == expected[1:3]
    alone = Told(all_told[4].model, all_told[4].prompt)
    seq_id = bench.ask(alone, NUM_TOKENS, temperature=1.0, seed=4)
    bench.drain()
    bench.collect(alone, seq_id)
    assert alone == all_told[4]
