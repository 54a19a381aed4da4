"""What a precision costs in quality: the perplexity of a real model on a real text, beside that of the first precision.

The text is the part of Python's language reference that every interpreter carries (`pydoc_data`), so that it is at hand
without a network and the same for everybody with that version.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

from benchmarks.driver import Driver
from benchmarks.errors import BenchmarkError
from benchmarks.machine import Record
from benchmarks.own import answer
from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine.requests import ScoreRequest, pack_ids
from harmonia.models import open_model
from harmonia.models.tokenizer import load_tokenizer
from harmonia.protocol.instances import SpawnSpec

BOUNDS = {"fp8": 0.01}
"""By precision: how much more perplexity than that of the first may be, where the work is enough to tell."""
ENOUGH_TOKENS = 20_000
CACHED_WINDOWS = 4


def run(model: str, precisions: Sequence[str], device: str, threads: int, num_tokens: int, window: int) -> list[Record]:
    """A record for each precision."""
    windows = cut(load_tokenizer(open_model(Path(model))).encode(text(), False), num_tokens, window)
    records: list[Record] = []
    for precision in precisions:
        config = EngineConfig(
            device=device,  # type: ignore[arg-type]  # the plan refuses what it does not know
            precision=precision,  # type: ignore[arg-type]
            num_threads=threads,
            max_adapters=0,
            cache=CacheConfig(kv_cache_len=CACHED_WINDOWS * -(-window // 16) * 16, prefix_caching=False),
        )
        logprobs = scored(Driver(config), model, windows)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        records.append(perplexity_record(precision, device, logprobs, records))
    return records


def text() -> str:
    """All topics of the reference, by name."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def cut(token_ids: Sequence[int], num_tokens: int, window: int) -> list[list[int]]:
    """Stretches of the text in which that many tokens have others before them."""
    count = -(-num_tokens // (window - 1))
    if count * window > len(token_ids):
        raise BenchmarkError(f"the text has {len(token_ids)} tokens, too few for --tokens {num_tokens}")
    return [list(token_ids[start : start + window]) for start in range(0, count * window, window)]


def scored(driver: Driver, model: str, windows: Sequence[Sequence[int]]) -> np.ndarray:
    """The log-probability of every token but the first of each window, in one row."""
    driver.spawn("base", SpawnSpec(path=model))
    found: dict[int, np.ndarray] = {}
    ids = []
    for window in windows:
        score = ScoreRequest(rows=pack_ids(list(range(len(window) - 1))), targets=pack_ids(list(window[1:])))
        ids.append(driver.add("base", window, score=score))
    while len(found) < len(ids):
        for output in driver.step():
            if output.values is not None:
                found[output.seq_id] = np.frombuffer(output.values, "<f4").astype(np.float64)
    return np.concatenate([found[seq_id] for seq_id in ids])


def perplexity_record(precision: str, device: str, logprobs: np.ndarray, before: Sequence[Record]) -> Record:
    """Perplexity, and how it differs from that of the first precision."""
    perplexity = math.exp(-float(logprobs.mean()))
    difference = perplexity / before[0]["perplexity"] - 1 if before else 0.0
    bound = BOUNDS.get(precision) if before and len(logprobs) >= ENOUGH_TOKENS else None
    return {
        "precision": precision,
        "device": device,
        "python": ".".join(map(str, sys.version_info[:3])),
        "num_tokens": len(logprobs),
        "perplexity": perplexity,
        "difference": difference,
        "bound": bound,
        "ok": None if bound is None else difference <= bound,
    }


if __name__ == "__main__":
    answer(run)
