"""The shared weights of one base model with its cache and adapters, and the instances that requests address."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from harmonia.cache import BlockPool, SessionTable, chain_root
from harmonia.config import EngineConfig
from harmonia.engine.memory import Plan, make_plan
from harmonia.engine.sequence import Instance
from harmonia.errors import InvalidRequestError, UnknownModelError
from harmonia.kernels import native
from harmonia.kernels.attention import LayerCache
from harmonia.layers.adapters import AdapterBank, AdapterTarget
from harmonia.log import get_logger
from harmonia.models import ModelConfig, load_decoder, open_model
from harmonia.models.decoder import Decoder
from harmonia.models.peft import read_adapter

log = get_logger(__name__)

_BACKBONE_VERSION = 0


class Backbone:
    """Weights, cache blocks, sessions, adapters, and a table of the model keys that name them."""

    def __init__(self, key: str, decoder: Decoder, plan: Plan) -> None:
        self.plan = plan
        self.decoder = decoder
        self.device = plan.fmt.device
        self.eos_ids = frozenset(decoder.config.eos_token_ids)
        self.pool = BlockPool(plan.num_blocks, plan.config.cache.block_size)
        self.sessions = SessionTable(self.pool, plan.config.cache.max_sessions)
        self.caches = _allocate_cache(decoder.config, plan)
        self.bank = AdapterBank(
            (
                AdapterTarget(f"model.layers.{target.layer}.{target.path}", target.linear, target.part)
                for target in decoder.linears()
            ),
            max_adapters=plan.config.max_adapters,
            num_rows=plan.config.adapter_rank_budget,
            fmt=plan.fmt,
        )
        self.base = Instance(key, _BACKBONE_VERSION, chain_root(key, _BACKBONE_VERSION), created=int(time.time()))
        self.adapters: dict[str, Instance] = {}
        self._num_loads = 0

    @staticmethod
    def load(model: str, key: str, config: EngineConfig, progress: Callable[[float], None] | None = None) -> Backbone:
        """Plan, refuse what does not fit, then read the weights."""
        source = open_model(model)
        plan = make_plan(Path(model).name, source.config, config)
        plan.memory.require()
        torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
        started = time.monotonic()
        decoder = load_decoder(source.limited(plan.max_seq_len), plan.fmt, progress)
        if plan.device == "cpu":
            native.load_kernels()
        log.info("loaded %s in %.1f s: %s on %s", model, time.monotonic() - started, plan.precision, plan.device)
        return Backbone(key, decoder, plan)

    def instance(self, key: str) -> Instance:
        """What a model key names; `UnknownModelError` lists the keys that exist."""
        if key == self.base.key:
            return self.base
        found = self.adapters.get(key)
        if found is None:
            keys = ", ".join(repr(name) for name in (self.base.key, *self.adapters))
            raise UnknownModelError(f"no model {key!r} here; there is {keys}", field="model")
        return found

    def load_adapter(self, key: str, path: str) -> Instance:
        """Read a PEFT folder into a free slot."""
        if not key.isprintable():
            raise InvalidRequestError(f"model key {key!r} holds characters that cannot be printed", field="key")
        if key == self.base.key or key in self.adapters:
            raise InvalidRequestError(f"model key {key!r} is taken; unload it first or use another", field="key")
        adapter = read_adapter(path, max_rank=self.plan.config.max_adapter_rank)
        slot = self.bank.load(key, adapter)
        self._num_loads += 1
        instance = Instance(
            key,
            version=self._num_loads,
            root=chain_root(self.base.key, _BACKBONE_VERSION, key, self._num_loads),
            adapter_slot=slot,
            parent=self.base.key,
            created=int(time.time()),
        )
        self.adapters[key] = instance
        log.info("loaded adapter %s from %s", key, path)
        return instance

    def unload_adapter(self, key: str) -> Instance:
        """Free an adapter's slot: the instance that is gone."""
        if key not in self.adapters:
            raise UnknownModelError(f"no adapter {key!r} is loaded", field="key")
        instance = self.adapters.pop(key)
        assert instance.adapter_slot is not None
        self.bank.unload(instance.adapter_slot)
        return instance


def _allocate_cache(model: ModelConfig, plan: Plan) -> tuple[LayerCache, ...]:
    shape = plan.num_blocks, plan.config.cache.block_size, model.num_kv_heads, model.head_dim
    return tuple(LayerCache(_zeros(shape, plan), _zeros(shape, plan)) for _ in range(model.num_layers))


def _zeros(shape: tuple[int, ...], plan: Plan) -> torch.Tensor:
    fmt = plan.fmt
    if fmt.device.type == "cpu" and fmt.dtype is torch.float32:
        # numpy's zeros are not touched until used, so an idle cache costs no memory
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=fmt.dtype, device=fmt.device)
