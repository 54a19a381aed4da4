"""The tiny model of `tiny.py`, made once, and engines around it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.backbone import Backbone
from harmonia.engine.engine import Engine
from harmonia.engine.memory import make_plan
from harmonia.models.decoder import Decoder
from tests.unit.engine.tiny import MODEL, Reference, random_decoder

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return random_decoder()


@pytest.fixture(scope="session")
def reference(decoder: Decoder) -> Reference:
    return Reference(decoder)


@pytest.fixture
def make_engine(decoder: Decoder) -> MakeEngine:
    """An engine with a small cache: `make_engine(num_blocks=12, max_running=4, ...)`."""

    def make(num_blocks: int = 64, *, config: EngineConfig | None = None, **scheduler: float) -> Engine:
        config = config or EngineConfig(
            device="cpu",
            precision="float32",
            adapter_rank_budget=16,
            cache=CacheConfig(kv_cache_len=num_blocks * 4, block_size=4),
            scheduler=SchedulerConfig(**{"max_batch_tokens": 24, "max_running": 4, "reserve_blocks": 1, **scheduler}),
        )
        backbone = Backbone("base", decoder, make_plan("tiny", MODEL, config))
        backbone.add_bare("base")
        return Engine(backbone)

    return make
