"""A draft on a GPU: the same answers, and every pass a captured graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.cached import CachedDecoder
from harmonia.engine.engine import Engine
from harmonia.engine.memory import InstanceNeed, make_plan
from harmonia.engine.sequence import Drafter
from harmonia.engine.speculation import Choice, Speculation
from harmonia.engine.steps import GraphedSteps
from harmonia.layers.linear import WeightFormat
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from tests.gpu.test_engine_gpu import PROMPTS, ask, tokens_of
from tests.unit.engine.tiny import MODEL, drain, random_decoder

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

STEPS = 4
SAMPLINGS = [{}, {"temperature": 0.9, "seed": 5}, {"temperature": 1.0, "seed": 7, "top_p": 0.9}, {"logprobs": 1}]


def decoder_on_gpu(fmt: WeightFormat, noise: float) -> Decoder:
    """The model of the other tests, or one that nearly agrees with it."""
    source = {parameter.name: parameter for parameter in random_decoder().parameters()}
    decoder = build_decoder(MODEL, fmt)
    torch.manual_seed(3)
    values = {
        name: torch.randn(item.shape) * (0.3 if len(item.shape) > 1 else 0.1) + (len(item.shape) == 1)
        for name, item in source.items()
    }
    for parameter in decoder.parameters():
        parameter.fill(0, values[parameter.name] + noise * torch.randn(parameter.shape))
    decoder.pack()
    return decoder


def engine_with_draft(drafter: Drafter | None, *, noise: float = 0.003, precision: str = "float32") -> Engine:
    config = EngineConfig(
        device="cuda",
        precision=precision,
        cache=CacheConfig(kv_cache_len=512, block_size=4),
        scheduler=SchedulerConfig(max_batch_tokens=64, max_running=4, reserve_blocks=1),
    )
    by_model = drafter is Drafter.MODEL
    need = InstanceNeed(name="base", num_draft_steps=STEPS if drafter else 0)
    plan = make_plan("tiny", MODEL, config, needs=(need,), draft=MODEL if by_model else None)
    draft = CachedDecoder(decoder_on_gpu(plan.fmt, noise), plan) if by_model else None
    backbone = Backbone("base", decoder_on_gpu(plan.fmt, 0.0), plan, draft=draft)
    backbone.add_bare("base")
    if drafter is not None:
        backbone.set_drafter("base", drafter, STEPS)
    engine = Engine(backbone)
    engine.prepare()
    return engine


def answers(engine: Engine, num_requests: int) -> dict[int, list[int]]:
    for seq_id, prompt in enumerate(PROMPTS[:num_requests]):
        ask(engine, seq_id, prompt, ignore_eos=True, **SAMPLINGS[seq_id % len(SAMPLINGS)])
    return tokens_of(drain(engine))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many proposals as are allowed, whatever they cost."""
    monkeypatch.setattr(Speculation, "choose", lambda self, count, share, most: Choice(count, most))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("num_requests", [1, 3, 12])
@pytest.mark.parametrize("drafter", list(Drafter))
def test_answers_are_the_same_with_a_draft(drafter: Drafter, num_requests: int) -> None:
    drafted = engine_with_draft(drafter)
    assert answers(drafted, num_requests) == answers(engine_with_draft(None), num_requests)
    if drafter is Drafter.MODEL:
        counters = drafted.stats().by_model["base"]
        assert counters["accepted_tokens"] > 0.3 * counters["drafted_tokens"] > 0


@pytest.mark.usefixtures("always")
def test_a_draft_that_is_the_target_is_always_right() -> None:
    """Or one of its passes read or wrote the wrong place."""
    engine = engine_with_draft(Drafter.MODEL, noise=0.0)
    for _ in range(3):
        answers(engine, 12)
    counters = engine.stats().by_model["base"]
    assert counters["accepted_tokens"] == counters["drafted_tokens"] > 100


@pytest.mark.usefixtures("always")
def test_every_pass_was_captured_before_the_first_request() -> None:
    engine = engine_with_draft(Drafter.MODEL)
    runner = engine._runner
    assert runner.proposer is not None
    captured = []
    for steps in (runner._steps, runner.proposer.steps):
        assert isinstance(steps, GraphedSteps)
        assert max(steps.sizes) == (4 * (1 + STEPS) if steps is runner._steps else 8)
        captured.append((steps, set(steps._captured)))
    answers(engine, 12)
    for steps, before in captured:
        assert set(steps._captured) == before


@pytest.mark.parametrize("num_steps", [0, 3])
def test_steps_overlap_where_nothing_is_proposed(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    monkeypatch.setattr(Speculation, "choose", lambda self, count, share, most: Choice(count, num_steps))
    engine = engine_with_draft(Drafter.MODEL)
    events = list[str]()
    for place, name in ((engine._runner, "launch"), (engine, "_finish")):
        monkeypatch.setattr(place, name, noted(getattr(place, name), name, events))
    ask(engine, 0, PROMPTS[3], ignore_eos=True)
    drain(engine)
    in_turn = ["launch", "_finish"] * (len(events) // 2)
    assert (events == in_turn) == (num_steps > 0)
    assert num_steps or events[:4] == ["launch", "launch", "_finish", "launch"]


def noted(call: Callable[..., object], name: str, events: list[str]) -> Callable[..., object]:
    def run(*args: object) -> object:
        events.append(name)
        return call(*args)

    return run
