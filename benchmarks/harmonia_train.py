"""Harmonia's runtime as a trainer, in a process of its own as the peer is."""

from __future__ import annotations

import torch

from benchmarks.driver import Driver, Pending
from benchmarks.peers.channel import EngineError
from benchmarks.peers.peak import Peak
from benchmarks.peers.training import Stepped, Trainer, TrainingJob, serve_training
from harmonia import __version__
from harmonia.config import EngineConfig
from harmonia.engine.requests import SaveRequest
from harmonia.protocol.instances import AdapterSpec, SpawnSpec

NAME = "adapter"


class HarmoniaTrainer:
    """One adapter in training; samples are handed over at once, and packed by the runtime."""

    def __init__(self, driver: Driver, job: TrainingJob, peak: Peak) -> None:
        self._driver = driver
        self._job = job
        self.peak = peak
        self.version: str = __version__
        self.arrangement = f"micro-batches of up to {job.max_tokens} tokens"

    def step(self, samples: list[list[int]]) -> Stepped:
        """One step by the mean gradient of the samples, each a sum over its tokens."""
        calls = [self._driver.train(NAME, sample) for sample in samples]
        calls.append(self._driver.optim_step(NAME, self._job.lr, self._job.max_grad_norm))
        metrics = self._driver.finish(*calls)[-1]["metrics"]
        assert isinstance(metrics, dict)
        # The last token of a sample is a target only and need not pass through the model.
        num_computed = sum(map(len, samples)) - len(samples)
        return Stepped(loss=float(str(metrics["loss"])) * len(samples), num_computed=num_computed)


def load(job: TrainingJob) -> Trainer:
    """Spawn the adapter in training and write it to where the peer finds it."""
    peak = Peak(torch, job.device)
    driver = Driver(
        EngineConfig(
            device=job.device,  # type: ignore[arg-type]  # the plan refuses what it does not know
            precision=job.precision,  # type: ignore[arg-type]
            num_threads=job.threads,
        )
    )
    spec = SpawnSpec(
        path=job.model,
        mode="training",
        max_batch_size=job.max_tokens,
        use_adapter=True,
        adapter=AdapterSpec(rank=job.rank),
        kv_cache_len=job.longest,
    )
    driver.spawn(NAME, spec)
    engine = driver.engine(NAME)
    num_layers, num_kept = len(engine.backbone.decoder.layers), engine.plan.num_kept
    if num_kept < num_layers:
        raise EngineError(
            f"the memory plan would recompute {num_layers - num_kept} of {num_layers} layers, and neither side is to do"
            f" that; lower --max-batch-size from {job.max_tokens}, or free memory"
        )
    saved = Pending()
    driver.runtime.save(SaveRequest(instance=NAME, folder=job.adapter), saved)
    driver.finish(saved)
    return HarmoniaTrainer(driver, job, peak)


if __name__ == "__main__":
    serve_training(load)
