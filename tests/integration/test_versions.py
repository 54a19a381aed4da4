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
TIE = 1e-5
"""Two tokens whose logits are closer may change places in another batch, unless the mode is invariant."""


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

    def is_tie(self, name: str, version: int, prompt: tuple[int, ...], one: int, other: int) -> bool:
        """Whether both tokens are as likely after the prompt, so that rounding may choose."""
        bench = self._bench(name, version)
        (chosen,), (not_chosen,) = (bench.score("it", (*prompt, token), len(prompt) - 1) for token in (one, other))
        return abs(chosen - not_chosen) < TIE

    def _tokens(self, name: str, version: int, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
        return self._bench(name, version).generate("it", prompt, max_tokens)

    def _bench(self, name: str, version: int) -> Bench:
        if (name, version) not in self._benches:
            bench = Bench()
            bench.spawn("it", self._model if name == "base" else str(self._folder / f"{name}{version}"))
            self._benches[name, version] = bench
        return self._benches[name, version]


class Traffic:
    """Requests to the base and two adapters, cancelled ones among them, while the adapters are updated."""

    def __init__(self, model: str, folder: Path, seed: int) -> None:
        self.bench = Bench()
        self.asked: dict[int, tuple[str, tuple[int, ...], int]] = {}
        self.saved = {"a": -1, "b": -1}
        """Newest version of each adapter that was saved."""
        self._generator = np.random.default_rng(seed)
        self._prompts = prompts(self._generator)
        self._folder = folder
        self._saves: list[Reply] = []
        self._updates: dict[str, Reply] = {}
        self.bench.spawn("base", model)
        for name in self.saved:
            self.bench.spawn(name, model, rank=4, seed=ord(name))
        self._save_versions()

    def run(self) -> None:
        while len(self.asked) < NUM_REQUESTS:
            for _ in range(self._draw(1, 6)):
                self._ask()
            if self._generator.random() < 0.1:
                self._update(str(self._generator.choice(["a", "b"])))
            if self._generator.random() < 0.05:
                self._cancel()
            for _ in range(self._draw(1, 5)):
                self.bench.step()
                self._save_versions()
        self.bench.drain()
        self.bench.wait(*self._saves, *self._updates.values())

    def _draw(self, low: int, high: int) -> int:
        return int(self._generator.integers(low, high))

    def _ask(self) -> None:
        name, prompt = str(self._generator.choice(MODELS)), self._prompts[self._draw(0, NUM_PROMPTS)]
        max_tokens = self._draw(1, 9)
        self.asked[self.bench.begin(name, prompt, max_tokens)] = name, prompt, max_tokens

    def _update(self, name: str) -> None:
        """One at a time, so that every version can be saved."""
        if name in self._updates and not self._updates[name].is_there:
            return
        self.bench.begin_training(name, [sample(self._generator.integers(1, VOCAB, 12).tolist())])
        reply = self._updates[name] = Reply()
        self.bench.runtime.optim_step(OptimStepRequest(instance=name, lr=5e-2), reply)

    def _cancel(self) -> None:
        seq_id = int(self._generator.choice(list(self.asked)))
        if seq_id not in self.bench.outputs:
            self.bench.runtime.cancel(seq_id)
            del self.asked[seq_id]

    def _save_versions(self) -> None:
        """Save each version while it is the present one."""
        for info in self.bench.runtime.describe().models:
            if info.version > self.saved.get(info.key, info.version):
                self.saved[info.key] = info.version
                self._saves.append(Reply())
                folder = str(self._folder / f"{info.key}{info.version}")
                self.bench.runtime.save(SaveRequest(instance=info.key, folder=folder), self._saves[-1])


@pytest.mark.parametrize("seed", [1, 2])
def test_outputs_equal_those_of_a_fresh_engine_at_their_version(model: str, tmp_path: Path, seed: int) -> None:
    traffic = Traffic(model, tmp_path, seed)
    traffic.run()

    bench, fresh = traffic.bench, Fresh(model, tmp_path)
    assert min(traffic.saved.values()) >= 5, "too few updates to mean anything"
    assert bench.runtime.stats().counters["prefix_hit_tokens"] > 0
    seen = set()
    for seq_id, (name, prompt, max_tokens) in traffic.asked.items():
        (version,) = bench.versions(seq_id)
        seen.add((name, version))
        answer, wanted = bench.tokens(seq_id), fresh.tokens(name, version, prompt, max_tokens)
        if answer != wanted:
            place = next(place for place, pair in enumerate(zip(answer, wanted, strict=True)) if pair[0] != pair[1])
            before = (*prompt, *wanted[:place])
            assert fresh.is_tie(name, version, before, answer[place], wanted[place]), (name, version, prompt)
    assert len(seen) > 10


def test_versions_of_the_fuzz_answer_differently(model: str) -> None:
    """Or it would not notice stale blocks."""
    bench = Bench()
    bench.spawn("a", model, rank=4)
    before = bench.generate("a", range(1, 20), 8)
    bench.train("a", [sample(list(range(1, 40)))])
    bench.optim_step("a", lr=5e-2)
    assert bench.generate("a", range(1, 20), 8) != before
