"""Write a GGUF file as a model folder, which transformers reads too."""

from __future__ import annotations

from benchmarks.driver import Driver, Pending
from benchmarks.machine import Record
from benchmarks.own import answer
from harmonia.config import EngineConfig
from harmonia.engine.requests import SaveRequest
from harmonia.protocol.instances import SpawnSpec

NAME = "model"


def run(*, model: str, folder: str) -> list[Record]:
    """Load it in fp32 and save it."""
    driver, saved = Driver(EngineConfig(device="cpu", precision="float32")), Pending()
    driver.spawn(NAME, SpawnSpec(path=model, kv_cache_len=64))
    driver.runtime.save(SaveRequest(instance=NAME, folder=folder), saved)
    return [{"folder": folder, "num_bytes": driver.finish(saved)[0]["num_bytes"]}]


if __name__ == "__main__":
    answer(run)
