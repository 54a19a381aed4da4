"""A runtime as its process sees it: commands with answers, steps until they came."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.requests import (
    OptimStepRequest,
    SampleArrays,
    ScoreRequest,
    SequenceOutput,
    SequenceRequest,
    TrainRequest,
    pack_ids,
)
from harmonia.engine.runtime import Runtime
from harmonia.errors import HarmoniaError
from harmonia.protocol.base import JsonObject
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.losses import LanguageModelling, Loss
from harmonia.protocol.sampling import SamplingParams

CONFIG = EngineConfig(
    device="cpu",
    precision="float32",
    cache=CacheConfig(kv_cache_len=2048),
    scheduler=SchedulerConfig(max_batch_tokens=48, max_running=8, reserve_blocks=1),
)
_PATIENCE_S = 300  # kernels may have to be compiled first


class Reply:
    """The answer to a command."""

    def __init__(self) -> None:
        self.value: JsonObject | None = None
        self.error: HarmoniaError | None = None

    def done(self, value: JsonObject) -> None:
        assert not self.is_there, "answered twice"
        self.value = value

    def failed(self, error: HarmoniaError) -> None:
        assert not self.is_there, "answered twice"
        self.error = error

    @property
    def is_there(self) -> bool:
        return self.value is not None or self.error is not None


class Bench:
    """A runtime and what came out of it."""

    def __init__(self, config: EngineConfig = CONFIG) -> None:
        self.runtime = Runtime(config)
        self.outputs: dict[int, list[SequenceOutput]] = {}
        self._seq_ids = iter(range(1, 1_000_000))

    def step(self) -> None:
        for output in self.runtime.step():
            self.outputs.setdefault(output.seq_id, []).append(output)

    def wait(self, *replies: Reply) -> list[JsonObject]:
        """Step until all answers are there; raises the first error among them."""
        deadline = time.monotonic() + _PATIENCE_S
        while not all(reply.is_there for reply in replies):
            assert time.monotonic() < deadline, "no answer"
            self.step()
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        return [reply.value or {} for reply in replies]

    def drain(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self.runtime.has_work:
            assert time.monotonic() < deadline, "never done"
            self.step()

    def spawn(self, name: str, path: str, *, rank: int = 0, seed: int = 0, **spec: object) -> JsonObject:
        """An instance; with a rank, one that trains a new adapter."""
        if rank:
            spec = {"use_adapter": True, "adapter": AdapterSpec(rank=rank, seed=seed), **spec}
        if rank or "max_batch_size" in spec:
            spec = {"mode": "training", "max_batch_size": 64, **spec}
        reply = Reply()
        self.runtime.spawn(name, SpawnSpec(path=path, **spec), reply, lambda _: None)  # type: ignore[arg-type]
        return self.wait(reply)[0]

    def begin_training(self, name: str, samples: Sequence[SampleArrays], loss: Loss | None = None) -> list[Reply]:
        """One call per sample, all at once."""
        replies = []
        for sample in samples:
            replies.append(Reply())
            request = TrainRequest(instance=name, sides=(sample,), loss=loss or LanguageModelling())
            self.runtime.train(request, replies[-1])
        return replies

    def train(self, name: str, samples: Sequence[SampleArrays], loss: Loss | None = None) -> None:
        self.wait(*self.begin_training(name, samples, loss))

    def optim_step(self, name: str, lr: float = 1e-2, **settings: object) -> JsonObject:
        reply = Reply()
        self.runtime.optim_step(OptimStepRequest(instance=name, lr=lr, **settings), reply)  # type: ignore[arg-type]
        return self.wait(reply)[0]

    def begin(self, name: str, prompt: Sequence[int], max_tokens: int = 6, **sampling: object) -> int:
        seq_id = next(self._seq_ids)
        settings = {"temperature": 0.0, "ignore_eos": True, **sampling}
        params = SamplingParams(max_tokens=max_tokens, **settings)  # type: ignore[arg-type]
        request = SequenceRequest(
            seq_id=seq_id, model=name, token_ids=pack_ids(tuple(prompt)), sampling=params, arrival_s=time.monotonic()
        )
        self.runtime.add(request)
        return seq_id

    def generate(self, name: str, prompt: Sequence[int], max_tokens: int = 6) -> list[int]:
        seq_id = self.begin(name, prompt, max_tokens)
        self.drain()
        return self.tokens(seq_id)

    def tokens(self, seq_id: int) -> list[int]:
        return [token for output in self.outputs[seq_id] for token in output.token_ids]

    def versions(self, seq_id: int) -> set[int]:
        return {output.version for output in self.outputs[seq_id]}

    def score(self, name: str, token_ids: Sequence[int], first: int = 0, *, scalar: bool = False) -> np.ndarray:
        """Log-probabilities of the tokens after `first`, or scores in their place."""
        seq_id = next(self._seq_ids)
        rows = range(first, len(token_ids) - 1)
        targets = b"" if scalar else pack_ids(tuple(token_ids[first + 1 :]))
        score = ScoreRequest(rows=pack_ids(tuple(rows)), targets=targets)
        self.runtime.add(SequenceRequest(seq_id=seq_id, model=name, token_ids=pack_ids(tuple(token_ids)), score=score))
        self.drain()
        (output,) = self.outputs[seq_id]
        assert output.values is not None
        return np.frombuffer(output.values, "<f4")


def sample(token_ids: Sequence[int], weights: Sequence[float] | None = None) -> SampleArrays:
    """Tokens that are all weighted but the first, unless weights are given."""
    weights = [0.0, *([1.0] * (len(token_ids) - 1))] if weights is None else weights
    return SampleArrays(token_ids=pack_ids(tuple(token_ids)), weights=np.asarray(weights, "<f4").tobytes())
