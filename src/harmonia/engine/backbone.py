"""The shared weights of one base model with its cache and adapters, and the instances that requests address."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from harmonia.cache import BlockPool, SessionTable, chain_root
from harmonia.config import EngineConfig
from harmonia.engine.cached import CachedDecoder
from harmonia.engine.memory import Plan, make_plan
from harmonia.engine.sequence import Drafter, Instance
from harmonia.errors import AdapterLimitError, InvalidRequestError, UnknownModelError
from harmonia.kernels import native
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.log import get_logger
from harmonia.models import load_decoder, open_model
from harmonia.models.atomic import read_whole
from harmonia.models.decoder import Decoder
from harmonia.models.peft import SavedAdapter, language_matrices, read_saved_adapter, require_base
from harmonia.models.source import ModelSource
from harmonia.train.scalar_head import ScalarHead

log = get_logger(__name__)


class Backbone(CachedDecoder):
    """Weights, cache blocks, sessions, adapters, and a table of the model keys that name them."""

    def __init__(
        self,
        key: str,
        decoder: Decoder,
        plan: Plan,
        *,
        source: ModelSource | None = None,
        draft: CachedDecoder | None = None,
    ) -> None:
        """key: identity of the weights in the prefix index, and how errors call them. draft: proposes tokens."""
        super().__init__(decoder, plan)
        self.key = key
        self.source = source
        self.draft = draft
        self.eos_ids = frozenset(decoder.config.eos_token_ids)
        self.pool = BlockPool(plan.num_blocks, plan.config.cache.block_size)
        self.sessions = SessionTable(self.pool, plan.config.cache.max_sessions)
        self.bank = AdapterBank(
            (
                BankTarget(f"model.layers.{target.layer}.{target.path}", target.linear, target.part)
                for target in decoder.linears()
            ),
            max_adapters=plan.config.max_adapters,
            num_rows=plan.config.adapter_rank_budget,
            fmt=plan.fmt,
        )
        self.version = 0
        """Counts updates of the weights themselves."""
        self.instances: dict[str, Instance] = {}
        self._serials = itertools.count(1)

    @staticmethod
    def load(model: str, key: str, config: EngineConfig, progress: Callable[[float], None] | None = None) -> Backbone:
        """Plan, refuse what does not fit, then read the weights."""
        source = open_model(model)
        plan = make_plan(Path(model).name, source.config, config)
        plan.memory.require()
        return Backbone.read(source, key, plan, progress)

    @staticmethod
    def read(
        source: ModelSource,
        key: str,
        plan: Plan,
        progress: Callable[[float], None] | None = None,
        draft: ModelSource | None = None,
    ) -> Backbone:
        """Read the weights of a model that was planned, and of its draft."""
        torch.set_num_threads(plan.config.num_threads or len(os.sched_getaffinity(0)))
        started = time.monotonic()
        decoder = load_decoder(source, plan.fmt, progress)
        if plan.device == "cpu":
            native.load_kernels()
        log.info("loaded %s in %.1f s: %s on %s", source.path, time.monotonic() - started, plan.precision, plan.device)
        cached_draft = None if draft is None else CachedDecoder(load_decoder(draft, plan.fmt), plan)
        return Backbone(key, decoder, plan, source=source, draft=cached_draft)

    @property
    def adapters_generation(self) -> int:
        """Counts what moved adapters in memory."""
        return self.bank.generation

    def grow_cache(self, num_blocks: int) -> None:
        """Enlarge the cache, the draft's with it; what is in it stays."""
        if num_blocks <= self.pool.num_blocks:
            return
        super().grow_cache(num_blocks)
        if self.draft is not None:
            self.draft.grow_cache(num_blocks)
        self.pool.grow(num_blocks)

    # ------------------------------------------------------------------------------------------- instances

    def instance(self, key: str) -> Instance:
        """What a model key names; `UnknownModelError` lists the keys that exist."""
        found = self.instances.get(key)
        if found is None:
            keys = ", ".join(repr(name) for name in self.instances)
            raise UnknownModelError(f"no model {key!r} here; there is {keys or 'none'}", field="model")
        return found

    @property
    def num_adapters(self) -> int:
        """Named adapters, snapshots not counted."""
        return sum(item.is_adapter and not item.is_snapshot for item in self.instances.values())

    def add_bare(self, key: str, head: ScalarHead | None = None) -> Instance:
        """Name the backbone without an adapter."""
        self.check_free(key)
        return self._add(Instance(key, self.version, self._root(), created=int(time.time()), head=head))

    def add_adapter(
        self, key: str, slot: int, *, version: int = 0, head: ScalarHead | None = None, is_snapshot: bool = False
    ) -> Instance:
        """Name an adapter that stands in a slot of the bank; under the backbone's own key, it answers in its place."""
        instance = Instance(
            key,
            version,
            root=b"",
            adapter_slot=slot,
            parent=None if key == self.key else self.key,
            created=int(time.time()),
            head=head,
            lineage=f"{key}#{next(self._serials)}",
            is_snapshot=is_snapshot,
        )
        return self._add(replace(instance, root=self._root(instance)))

    def add_snapshot(self, key: str, source: Instance) -> Instance:
        """Name a frozen copy of an instance; it shares cached blocks with its source at this version."""
        self.check_free(key)
        slot = None if source.adapter_slot is None else self.bank.copy_slot(source.adapter_slot, key)
        copy = replace(source, key=key, adapter_slot=slot, created=int(time.time()), is_snapshot=True)
        return self._add(copy)

    def advance(self, key: str, slot: int | None, head: ScalarHead | None) -> Instance:
        """The next version of an instance, or, without a slot, of the backbone and every instance on it."""
        instance = self.instance(key)
        if slot is not None:
            new = replace(instance, version=instance.version + 1, adapter_slot=slot, head=head)
            self.instances[key] = replace(new, root=self._root(new))
        else:
            self.version += 1
            for name, item in self.instances.items():
                moved = replace(item, version=self.version, head=head if name == key else item.head)
                self.instances[name] = replace(moved, root=self._root(moved))
        return self.instances[key]

    def remove(self, key: str) -> Instance:
        """Forget a name and free its slot: the instance that is gone."""
        instance = self.instance(key)
        del self.instances[key]
        if instance.adapter_slot is not None:
            self.bank.unload(instance.adapter_slot)
        return instance

    def set_drafter(self, key: str, drafter: Drafter | None, num_steps: int) -> None:
        """Have tokens of an instance proposed, so many at a time."""
        assert drafter is not Drafter.MODEL or self.draft is not None, "a backbone with a draft is read with it"
        self.instances[key] = replace(self.instances[key], drafter=drafter, num_draft_steps=num_steps)

    def check_free(self, key: str) -> None:
        """Raise `InvalidRequestError` for a name that is taken or cannot be shown."""
        if not key or not key.isprintable():
            raise InvalidRequestError(f"model key {key!r} is empty or cannot be printed", field="key")
        if key in self.instances:
            raise InvalidRequestError(f"model key {key!r} is taken; unload it first or use another", field="key")

    def check_adapter_limit(self, key: str) -> None:
        """Raise `AdapterLimitError` when there is no room for one more named adapter."""
        limit = self.plan.config.max_adapters
        if self.num_adapters >= limit:
            raise AdapterLimitError(
                f"adapter {key!r} exceeds the limit of {limit} adapters on one backbone; "
                "unload one or raise max_adapters (--max-adapters)",
                limit=limit,
            )

    def load_adapter(self, key: str, path: str) -> Instance:
        """Read a PEFT folder into a free slot; it has the draft of what answers under the backbone's key."""
        self.check_free(key)
        matrices = language_matrices(path, self.read_adapter(Path(path)))
        self.check_adapter_limit(key)
        self.add_adapter(key, self.bank.load(key, matrices))
        served = self.instances.get(self.key)
        if served is not None:
            self.set_drafter(key, served.drafter, served.num_draft_steps)
        log.info("loaded adapter %s from %s", key, path)
        return self.instances[key]

    def read_adapter(self, folder: Path) -> SavedAdapter:
        """An adapter of this backbone, whole; `InvalidRequestError` when it belongs to another, naming both."""

        def read(path: Path) -> SavedAdapter:
            saved = read_saved_adapter(path, max_rank=self.plan.config.max_adapter_rank)
            require_base(path, saved, self.decoder, self.key)
            return saved

        return read_whole(folder, read)

    def _add(self, instance: Instance) -> Instance:
        self.instances[instance.key] = instance
        return instance

    def _root(self, adapter: Instance | None = None) -> bytes:
        if adapter is None or adapter.lineage is None:
            return chain_root(self.key, self.version)
        return chain_root(self.key, self.version, adapter.lineage, adapter.version)
