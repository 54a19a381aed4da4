"""What 8-bit weights cost a real model."""

from __future__ import annotations

import math
import time
from pathlib import Path

from harmonia.config import CacheConfig, EngineConfig
from harmonia.config.engine import Precision
from harmonia.engine.engine import Engine
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.models import open_model
from harmonia.models.tokenizer import load_tokenizer
from harmonia.protocol.sampling import SamplingParams

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()


def perplexity(model: Path, precision: Precision) -> float:
    tokens = load_tokenizer(open_model(model)).encode(TEXT, False)[:600]
    config = EngineConfig(device="cpu", precision=precision, max_adapters=0, cache=CacheConfig(kv_cache_len=1024))
    engine = Engine.load(str(model), "m", config)
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    engine.add(
        SequenceRequest(seq_id=0, model="m", token_ids=pack_ids(tokens), sampling=sampling, arrival_s=time.monotonic())
    )
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    scores = [score.logprob for score in outputs[0].prompt_scores if score.logprob is not None]
    return math.exp(-sum(scores) / len(scores))


def test_int8_keeps_the_perplexity(smollm2: Path) -> None:
    assert perplexity(smollm2, "int8") / perplexity(smollm2, "float32") < 1.02
