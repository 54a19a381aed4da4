"""The engine on a GPU: the same tokens as on a CPU, with steps overlapping."""

from __future__ import annotations

import time

import msgspec
import pytest
import torch

from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.engine import Engine
from harmonia.engine.memory import make_plan
from harmonia.engine.requests import SequenceOutput, SequenceRequest, pack_ids
from harmonia.layers.linear import WeightFormat
from harmonia.models.families import build_decoder
from harmonia.protocol.sampling import SamplingParams
from tests.unit.engine.tiny import MODEL, Reference, drain, random_decoder

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

PROMPTS = [tuple((3 * start + 7 * step) % 60 for step in range(5 + 3 * start)) for start in range(12)]


def engine_on_gpu(precision: str, *, graphs: bool = True, max_batch_tokens: int = 24) -> Engine:
    config = EngineConfig(
        device="cuda",
        precision=precision,
        graphs=graphs,
        adapter_rank_budget=16,
        cache=CacheConfig(kv_cache_len=256, block_size=4),
        scheduler=SchedulerConfig(max_batch_tokens=max_batch_tokens, max_running=4, reserve_blocks=1),
    )
    plan = make_plan("tiny", MODEL, config)
    source = {parameter.name: parameter for parameter in random_decoder().parameters()}
    decoder = build_decoder(MODEL, WeightFormat(plan.fmt.dtype, plan.fmt.device))
    torch.manual_seed(3)
    for parameter in decoder.parameters():
        noise = torch.randn(source[parameter.name].shape) * (0.3 if len(parameter.shape) > 1 else 0.1)
        parameter.fill(0, noise + 1 if len(parameter.shape) == 1 else noise)
    backbone = Backbone("base", decoder, plan)
    backbone.add_bare("base")
    return Engine(backbone)


def ask(engine: Engine, seq_id: int, prompt: tuple[int, ...], **sampling: object) -> None:
    settings = SamplingParams(**{"temperature": 0.0, "max_tokens": 20, **sampling})
    engine.add(
        SequenceRequest(
            seq_id=seq_id, model="base", token_ids=pack_ids(prompt), sampling=settings, arrival_s=time.monotonic()
        )
    )


def test_overlapped_steps_give_the_tokens_of_the_cpu() -> None:
    reference = Reference(random_decoder())
    engine = engine_on_gpu("float32")
    for seq_id, prompt in enumerate(PROMPTS):
        ask(engine, seq_id, prompt)
    outputs = drain(engine)
    for seq_id, prompt in enumerate(PROMPTS):
        assert [token for output in outputs[seq_id] for token in output.token_ids] == reference.generate(prompt, 20)
    assert engine.backbone.pool.num_held == 0


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_every_kind_of_request_runs(precision: str) -> None:
    engine = engine_on_gpu("bfloat16") if precision == "bfloat16" else engine_on_gpu("int8")
    ask(engine, 0, PROMPTS[4], temperature=0.8, top_p=0.9, top_k=20, min_p=0.01, seed=3, logprobs=3)
    ask(engine, 1, PROMPTS[5], repetition_penalty=1.2, presence_penalty=0.5, logit_bias={3: 2.0}, min_tokens=3)
    ask(engine, 2, PROMPTS[6], prompt_logprobs=2)
    outputs = drain(engine)
    assert all(outputs[seq_id][-1].finish_reason for seq_id in range(3))
    assert len(outputs[2][0].prompt_scores) == len(PROMPTS[6])
    assert msgspec.msgpack.encode(list(outputs.values()))


@pytest.mark.parametrize("max_batch_tokens", [7, 24, 200])
@pytest.mark.parametrize("num_requests", [1, 3, 12])
def test_graphs_give_the_tokens_of_steps_without_them(num_requests: int, max_batch_tokens: int) -> None:
    answers = []
    for graphs in (False, True):
        engine = engine_on_gpu("float32", graphs=graphs, max_batch_tokens=max_batch_tokens)
        for seq_id, prompt in enumerate(PROMPTS[:num_requests]):
            ask(engine, seq_id, prompt, logprobs=0, prompt_logprobs=0 if seq_id % 3 == 2 else None)
        answers.append(tokens_of(drain(engine)))
    assert answers[0] == answers[1]


def test_graphs_are_captured_anew_when_the_cache_has_moved() -> None:
    engine, reference = engine_on_gpu("float32"), Reference(random_decoder())
    for seq_id, num_blocks in enumerate((64, 96, 160)):
        engine.backbone.grow_cache(num_blocks)
        ask(engine, seq_id, PROMPTS[seq_id])
        assert tokens_of(drain(engine))[seq_id] == reference.generate(PROMPTS[seq_id], 20)


def tokens_of(outputs: dict[int, list[SequenceOutput]]) -> dict[int, list[int]]:
    return {seq_id: [token for output in its for token in output.token_ids] for seq_id, its in outputs.items()}


def test_memory_does_not_grow_over_ten_thousand_steps() -> None:
    engine = engine_on_gpu("bfloat16")
    reserved, seq_id = [], 0
    while len(reserved) < 5:
        goal = 2500 * len(reserved)
        while engine.stats().counters.get("steps", 0) < goal:
            for kind in ({}, {"temperature": 0.9, "top_p": 0.9, "seed": seq_id, "logprobs": 2}):
                ask(engine, seq_id, PROMPTS[seq_id % len(PROMPTS)], **kind)
                seq_id += 1
            drain(engine)
        reserved.append((torch.cuda.memory_reserved(), torch.cuda.memory_allocated()))
    assert reserved[-1] == reserved[1]
