"""No stale policy: whatever happens around it, an output is that of the version stamped on it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from harmonia.engine.requests import OptimStepRequest, SaveRequest
from tests.unit.engine.runtime import Bench, Reply, sample
from tests.unit.models.tiny import VOCAB, reference_model

NUM_REQUESTS = 1500
NUM_PROMPTS = 24
MODELS = ("base", "a", "b")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    reference_model("llama").save_pretrained(folder)
    return str(folder)


def prompts(generator: np.random.Generator) -> list[tuple[int, ...]]:
    """Many share a beginning of several cache blocks, as chats do."""
    stems = [generator.integers(1, VOCAB, 40) for _ in range(3)]
    return [
        (*stems[index % 3][: generator.integers(16, 40)].tolist(), *generator.integers(1, VOCAB, 3).tolist())
        for index in range(NUM_PROMPTS)
    ]


class Fresh:
    """What a fresh engine says at each version, from a copy of the adapter that was saved when it came to be."""

    def __init__(self, model: str, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._benches: dict[tuple[str, int], Bench] = {}
        self.tokens = lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, name: str, version: int, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
        if (name, version) not in self._benches:
            bench = Bench()
            bench.spawn("it", self._model if name == "base" else str(self._folder / f"{name}{version}"))
            self._benches[name, version] = bench
        return self._benches[name, version].generate("it", prompt, max_tokens)


@pytest.mark.parametrize("seed", [1, 2])
def test_outputs_equal_those_of_a_fresh_engine_at_their_version(model: str, tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    bench = Bench()
    bench.spawn("base", model)
    for name in "ab":
        bench.spawn(name, model, rank=4, seed=ord(name))
    texts = prompts(generator)
    asked: dict[int, tuple[str, tuple[int, ...], int]] = {}
    replies: list[Reply] = []
    saved = {"a": -1, "b": -1}

    def note_versions() -> None:
        """Save each version while it is the present one."""
        for info in bench.runtime.describe().models:
            if info.key in saved and info.version > saved[info.key]:
                saved[info.key] = info.version
                reply = Reply()
                folder = tmp_path / f"{info.key}{info.version}"
                bench.runtime.save(SaveRequest(instance=info.key, folder=str(folder)), reply)
                replies.append(reply)

    note_versions()
    updates = {name: Reply() for name in "ab"}
    for reply in updates.values():
        reply.done({})
    while len(asked) < NUM_REQUESTS:
        for _ in range(generator.integers(1, 6)):
            name, prompt = str(generator.choice(MODELS)), texts[generator.integers(NUM_PROMPTS)]
            max_tokens = int(generator.integers(1, 9))
            asked[bench.begin(name, prompt, max_tokens)] = (name, prompt, max_tokens)
        if generator.random() < 0.1:
            name = str(generator.choice(["a", "b"]))
            if updates[name].is_there:  # one update at a time, so that every version can be saved
                ids = generator.integers(1, VOCAB, 12).tolist()
                bench.begin_training(name, [sample(ids)])
                updates[name] = begin_step(bench, name)
        if generator.random() < 0.05:
            seq_id = int(generator.choice(list(asked)))
            if seq_id not in bench.outputs:
                bench.runtime.cancel(seq_id)
                del asked[seq_id]
        for _ in range(generator.integers(1, 5)):
            bench.step()
            note_versions()
    bench.drain()
    bench.wait(*replies, *updates.values())

    fresh = Fresh(model, tmp_path)
    assert min(saved.values()) >= 5, "too few updates to mean anything"
    assert bench.runtime.stats().counters["prefix_hit_tokens"] > 0
    seen = set()
    for seq_id, (name, prompt, max_tokens) in asked.items():
        (version,) = bench.versions(seq_id)
        seen.add((name, version))
        assert bench.tokens(seq_id) == fresh.tokens(name, version, prompt, max_tokens), (name, version, prompt)
    assert len(seen) > 10


def begin_step(bench: Bench, name: str) -> Reply:
    reply = Reply()
    bench.runtime.optim_step(OptimStepRequest(instance=name, lr=5e-2), reply)
    return reply


def test_versions_of_the_fuzz_answer_differently(model: str) -> None:
    """Or it would not notice stale blocks."""
    bench = Bench()
    bench.spawn("a", model, rank=4)
    before = bench.generate("a", range(1, 20), 8)
    bench.train("a", [sample(list(range(1, 40)))])
    bench.optim_step("a", lr=5e-2)
    assert bench.generate("a", range(1, 20), 8) != before
