"""A runtime in invariant mode, and every way to learn the log-probabilities of a sequence."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.engine import Engine
from harmonia.engine.requests import ScoreRequest, SequenceRequest, pack_ids
from harmonia.protocol.losses import LanguageModelling
from harmonia.protocol.sampling import SamplingParams
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.samples import Sample
from tests.unit.engine.runtime import Bench, sample

MODELS = ("base", "one", "two")


@dataclass
class Told:
    """A sequence, what was said of it while it was sampled, and what others say."""

    model: str
    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    of_prompt: list[float] = field(default_factory=list)

    @property
    def all_tokens(self) -> list[int]:
        return [*self.prompt, *self.tokens]


def floats(values: Sequence[float]) -> list[float]:
    """As fp32, which they all are before they travel."""
    return np.asarray(values, "<f4").tolist()


class InvariantBench(Bench):
    """A runtime with a base model and two adapters that were trained apart."""

    VOCAB = 96  # token ids of the samples

    def __init__(self, path: Path, **config: object) -> None:
        super().__init__(
            EngineConfig(
                **{
                    "device": "cpu",
                    "precision": "float32",
                    "invariant": True,
                    "num_threads": 1,  # two would wait for each other wherever other tests run
                    "cache": CacheConfig(kv_cache_len=256, block_size=4),
                    "scheduler": SchedulerConfig(max_batch_tokens=40, max_running=8, reserve_blocks=1),
                    **config,
                }  # type: ignore[arg-type]
            )
        )
        self.spawn("one", str(path), rank=3, seed=1)
        self.spawn("two", str(path), rank=8, seed=2)
        self.spawn("base", str(path))
        rng = random.Random(7)
        for name in MODELS[1:]:
            for _ in range(3):
                self.train(name, [sample([rng.randrange(self.VOCAB) for _ in range(20)])])
                self.optim_step(name, lr=3e-2)

    @property
    def engine(self) -> Engine:
        return self.runtime._lanes.of("base").engine

    def ask(self, told: Told, max_tokens: int, **sampling: object) -> int:
        """Begin to sample; the sampling settings come with log-probabilities of prompt and answer."""
        seq_id = next(self._seq_ids)
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, logprobs=0, prompt_logprobs=0, **sampling)  # type: ignore[arg-type]
        self.runtime.add(
            SequenceRequest(
                seq_id=seq_id,
                model=told.model,
                token_ids=pack_ids(told.prompt),
                sampling=params,
                arrival_s=time.monotonic(),
            )
        )
        return seq_id

    def collect(self, told: Told, seq_id: int) -> None:
        """Note what came of it."""
        told.tokens, told.sampled, told.of_prompt = [], [], []
        for output in self.outputs.pop(seq_id):
            assert output.error is None
            told.tokens += output.token_ids
            told.sampled += floats([score.logprob for score in output.scores])
            told.of_prompt += floats([score.logprob for score in output.prompt_scores])
        assert np.isnan(told.of_prompt.pop(0)), "nothing comes before the first token"

    def scores(self, all_told: Sequence[Told]) -> list[list[float]]:
        """Of every token but the first, all asked for at once."""
        seq_ids = []
        for told in all_told:
            seq_ids.append(next(self._seq_ids))
            tokens = told.all_tokens
            score = ScoreRequest(rows=pack_ids(list(range(len(tokens) - 1))), targets=pack_ids(tokens[1:]))
            self.runtime.add(
                SequenceRequest(seq_id=seq_ids[-1], model=told.model, token_ids=pack_ids(tokens), score=score)
            )
        self.drain()
        return [np.frombuffer(self.outputs.pop(seq_id)[-1].values, "<f4").tolist() for seq_id in seq_ids]

    def trained(self, all_told: Sequence[Told], num_kept: int) -> list[list[float]]:
        """Of every token but the first, as a loss sees them in one micro-batch."""
        values: dict[int, list[float]] = {}
        items = []
        for index, told in enumerate(all_told):
            tokens = told.all_tokens
            trainer = self.engine.training.trainers.get(told.model)
            values_of = Sample.from_weighted(tokens, [0.0, *[1.0] * (len(tokens) - 1)])

            def report(loss: torch.Tensor, read: tuple[torch.Tensor, ...], index: int = index) -> None:
                values[index] = read[0].tolist()

            slot = None if trainer is None else trainer.weights.slot
            items.append(Item((values_of,), LanguageModelling(), slot, None, report))
        for _ in MicroBatch(self.engine.backbone.decoder, items, num_kept=num_kept).run():
            pass
        return [values[index] for index in range(len(all_told))]
