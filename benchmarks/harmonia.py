"""Harmonia's own engine, run in a process of its own as the peers are."""

from __future__ import annotations

import itertools
import time

from benchmarks.peers.channel import Engine, EngineError, Job, serve
from harmonia import __version__
from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine.engine import Engine as HarmoniaEngine
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.errors import HarmoniaError
from harmonia.protocol.sampling import SamplingParams

KEY = "model"


class Harmonia:
    """The engine called directly, without HTTP: what the other engines' adapters do too."""

    def __init__(self, engine: HarmoniaEngine) -> None:
        self._engine = engine
        self._ids = itertools.count()
        self.version: str = __version__
        self.precision: str = engine.plan.precision

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[int]]:
        """All prompts at once, greedy, to exactly that many tokens each."""
        sampling = SamplingParams(temperature=0.0, max_tokens=num_output_tokens, ignore_eos=True)
        outputs: dict[int, list[int]] = {}
        for prompt in prompts:
            seq_id = next(self._ids)
            outputs[seq_id] = []
            self._engine.add(
                SequenceRequest(
                    seq_id=seq_id,
                    model=KEY,
                    token_ids=pack_ids(prompt),
                    sampling=sampling,
                    arrival_s=time.monotonic(),
                )
            )
        while self._engine.has_work:
            for output in self._engine.step():
                outputs[output.seq_id] += output.token_ids
        return list(outputs.values())


def load(job: Job) -> Engine:
    """Load a backbone with a cache for the work at hand."""
    config = EngineConfig(
        precision=job.precision,  # type: ignore[arg-type]  # the plan refuses what it does not know
        num_threads=job.threads,
        max_adapters=0,
        cache=CacheConfig(kv_cache_len=job.max_sequences * job.max_length),
    )
    try:
        return Harmonia(HarmoniaEngine.load(job.model, KEY, config))
    except HarmoniaError as error:
        raise EngineError(error.message) from error


if __name__ == "__main__":
    serve(load)
