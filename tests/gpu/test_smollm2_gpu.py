"""A real model on a GPU: its greedy answers are those of the CPU, token for token, in fp32 without TF32."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine.engine import Engine
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.models import open_model
from harmonia.models.tokenizer import load_tokenizer
from harmonia.protocol.sampling import SamplingParams
from tests.unit.engine.tiny import drain

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(900)]

THINGS = ("a river", "the moon", "bread", "a violin", "glass")
ASKED = (
    "Describe {} in one sentence.",
    "Write a short poem about {}.",
    "Why do people like {}?",
    "Explain {} to a child.",
)
NUM_TOKENS = 64


def answers(model: Path, prompts: list[list[int]], device: str, *, graphs: bool = True) -> list[list[int]]:
    cache = CacheConfig(kv_cache_len=4096)
    config = EngineConfig(device=device, precision="float32", max_seq_len=512, cache=cache, graphs=graphs)
    engine = Engine.load(str(model), "smollm2", config)
    for seq_id, prompt in enumerate(prompts):
        engine.add(
            SequenceRequest(
                seq_id=seq_id,
                model="smollm2",
                token_ids=pack_ids(prompt),
                sampling=SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True),
                arrival_s=time.monotonic(),
            )
        )
    outputs = drain(engine)
    return [[token for output in outputs[seq_id] for token in output.token_ids] for seq_id in range(len(prompts))]


def test_greedy_answers_are_those_of_the_cpu(smollm2: Path) -> None:
    tokenizer = load_tokenizer(open_model(smollm2))
    texts = [form.format(thing) for form in ASKED for thing in THINGS]
    chats = [tokenizer.chat_template.render([{"role": "user", "content": text}]) for text in texts]
    prompts = [tokenizer.encode(chat, add_special=False) for chat in chats]
    assert len(prompts) == 20
    assert answers(smollm2, prompts, "cuda") == answers(smollm2, prompts, "cpu")
