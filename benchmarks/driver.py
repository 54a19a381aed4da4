"""Harmonia's runtime in this process, driven as its worker drives it: instances, training calls, sequences."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.peers.channel import EngineError
from harmonia.config import EngineConfig
from harmonia.engine.engine import Engine
from harmonia.engine.requests import (
    OptimStepRequest,
    SampleArrays,
    SequenceOutput,
    SequenceRequest,
    TrainRequest,
    pack_ids,
)
from harmonia.engine.runtime import Runtime
from harmonia.errors import HarmoniaError
from harmonia.protocol.base import JsonObject
from harmonia.protocol.instances import SpawnSpec
from harmonia.protocol.losses import LanguageModelling

# How long to sleep when the runtime waits for a thread.
POLL_S = 0.001


class Pending:
    """The answer to one command, once it is there."""

    def __init__(self) -> None:
        self.value: JsonObject | None = None
        self.error: HarmoniaError | None = None

    def done(self, value: JsonObject) -> None:
        """It succeeded."""
        self.value = value

    def failed(self, error: HarmoniaError) -> None:
        """It did not."""
        self.error = error

    @property
    def is_open(self) -> bool:
        """Nothing is known yet."""
        return self.value is None and self.error is None

    def result(self) -> JsonObject:
        """Return the value; raises `EngineError`."""
        if self.error is not None:
            raise EngineError(self.error.message) from self.error
        assert self.value is not None
        return self.value


class Driver:
    """A runtime and the ids of its sequences."""

    def __init__(self, config: EngineConfig) -> None:
        self.runtime = Runtime(config)
        self._ids = itertools.count()

    def spawn(self, name: str, spec: SpawnSpec) -> JsonObject:
        """Make an instance and wait for it."""
        pending = Pending()
        try:
            self.runtime.spawn(name, spec, pending, lambda share: None)
        except HarmoniaError as error:
            raise EngineError(error.message) from error
        return self.finish(pending)[0]

    def engine(self, name: str) -> Engine:
        """Return the engine that an instance lives on."""
        return self.runtime._lanes.of(name).engine

    def finish(self, *commands: Pending) -> list[JsonObject]:
        """Step until these are answered."""
        while any(command.is_open for command in commands):
            self.step()
        return [command.result() for command in commands]

    def step(self) -> list[SequenceOutput]:
        """One step, with a short sleep when there was nothing to do."""
        outputs = self.runtime.step()
        for output in outputs:
            if output.error is not None:
                raise EngineError(f"sequence {output.seq_id} failed: {output.error.message}")
        if self.runtime.stalled:
            time.sleep(POLL_S)
        return outputs

    def train(self, name: str, token_ids: Sequence[int]) -> Pending:
        """Queue a sample for language modelling of every token but the first."""
        pending, weights = Pending(), np.ones(len(token_ids), "<f4")
        weights[0] = 0
        side = SampleArrays(token_ids=pack_ids(list(token_ids)), weights=weights.tobytes())
        self.runtime.train(TrainRequest(instance=name, sides=(side,), loss=LanguageModelling()), pending)
        return pending

    def optim_step(self, name: str, lr: float, max_grad_norm: float = 1.0) -> Pending:
        """Queue a step behind the samples before it."""
        pending = Pending()
        self.runtime.optim_step(OptimStepRequest(instance=name, lr=lr, max_grad_norm=max_grad_norm), pending)
        return pending

    def add(self, name: str, token_ids: Sequence[int], **settings: object) -> int:
        """Queue a sequence and return its id; the settings are `SequenceRequest`'s."""
        seq_id = next(self._ids)
        request = SequenceRequest(
            seq_id=seq_id,
            model=name,
            token_ids=pack_ids(list(token_ids)),
            arrival_s=time.monotonic(),
            **settings,  # type: ignore[arg-type]  # msgspec's structs refuse what they do not know
        )
        self.runtime.add(request)
        return seq_id
