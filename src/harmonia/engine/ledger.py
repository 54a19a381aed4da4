"""Who was promised how much of the device's memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from harmonia.config import EngineConfig
from harmonia.engine.instances import Instances
from harmonia.engine.memory import InstanceNeed, Plan, make_plan
from harmonia.models.config import ModelConfig
from harmonia.models.source import ModelSource
from harmonia.protocol.instances import SpawnSpec


class Promise(Protocol):
    """A backbone on its way."""

    plan: Plan


class Ledger:
    """Plans each backbone within what the others leave."""

    def __init__(self, config: EngineConfig, lanes: Iterable[Instances], loads: Iterable[Promise]) -> None:
        """lanes, loads: the runtime's own lists, of which this keeps account."""
        self._config = config
        self._lanes = lanes
        self._loads = loads
        self._capacity: int | None = None
        """Bytes for everything, measured before the first backbone is loaded."""

    def plan_served(self, source: ModelSource, need: InstanceNeed, draft: ModelSource | None) -> Plan:
        """The plan of the backbone that is served for good, as configured."""
        return self._plan(source.path, source, self._config, (need,), draft)

    def plan_new(
        self,
        path: Path,
        model: ModelSource | ModelConfig,
        spec: SpawnSpec,
        need: InstanceNeed,
        draft: ModelSource | ModelConfig | None = None,
    ) -> Plan:
        """The plan of a backbone that comes with an instance: read from a source, or copied from a decoder."""
        own = self._config
        config = msgspec.structs.replace(
            own,
            cache=msgspec.structs.replace(own.cache, kv_cache_len=spec.kv_cache_len or own.cache.kv_cache_len),
            precision=spec.precision or own.precision,
            invariant=own.invariant if spec.invariant is None else spec.invariant,
            adapter_rank_budget=0,
        )
        return self._plan(path, model, config, (need,), draft)

    def replan(self, lane: Instances, need: InstanceNeed | None, kv_cache_len: int | None = None) -> Plan:
        """The plan of a loaded backbone with one more instance, or one that needs more, and perhaps a larger cache."""
        backbone = lane.engine.backbone
        config = backbone.plan.config
        if kv_cache_len is not None and kv_cache_len > backbone.pool.num_blocks * backbone.pool.block_size:
            cache = msgspec.structs.replace(config.cache, kv_cache_len=kv_cache_len)
            config = msgspec.structs.replace(config, cache=cache)
        plan = make_plan(
            Path(lane.path).name,
            backbone.source or backbone.decoder.config,
            config,
            available=self._room_beside(lane),
            needs=tuple((lane.needs if need is None else {**lane.needs, need.name: need}).values()),
            num_blocks=backbone.pool.num_blocks,
            draft=None if backbone.draft is None else backbone.draft.decoder.config,
        )
        # Position and block tables were made for the sequences of the first plan.
        return msgspec.structs.replace(plan, max_seq_len=backbone.plan.max_seq_len)

    def _plan(
        self,
        path: Path,
        model: ModelSource | ModelConfig,
        config: EngineConfig,
        needs: tuple[InstanceNeed, ...],
        draft: ModelSource | ModelConfig | None,
    ) -> Plan:
        plan = make_plan(path.name, model, config, available=self._room_beside(None), needs=needs, draft=draft)
        if self._capacity is None:
            self._capacity = plan.memory.available_bytes
        return plan

    def _room_beside(self, lane: Instances | None) -> int | None:
        """Bytes that one backbone may use beside what the others were promised; None before the first."""
        if self._capacity is None:
            return None
        plans = [item.engine.plan for item in self._lanes if item is not lane] + [load.plan for load in self._loads]
        return self._capacity - sum(_beside_runtime(plan) for plan in plans)

    def promised_bytes(self, *, with_runtime: bool) -> int:
        """What all backbones together may take, with or without what the process takes by itself."""
        plans = [item.engine.plan for item in self._lanes] + [load.plan for load in self._loads]
        runtime = max((plan.memory.total_bytes - _beside_runtime(plan) for plan in plans), default=0)
        return runtime * with_runtime + sum(_beside_runtime(plan) for plan in plans)


def _beside_runtime(plan: Plan) -> int:
    """What a plan adds where another one has counted what the process takes by itself."""
    return sum(row.num_bytes for row in plan.memory.rows if row.name != "runtime")
