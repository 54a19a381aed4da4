"""What a runtime is and does, in the terms of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from harmonia.engine.instances import Instances
from harmonia.engine.requests import EngineDescription
from harmonia.engine.stats import EngineStats
from harmonia.protocol.messages import ModelInfo


def describe(lanes: Sequence[Instances]) -> EngineDescription:
    """All models; sizes and plan are those of the first backbone, or empty when there is none."""
    if not lanes:
        return EngineDescription(
            models=(),
            family="",
            vocab_size=0,
            max_seq_len=0,
            kv_cache_len=0,
            precision="",
            device="",
            plan={},
        )
    backbone = lanes[0].engine.backbone
    plan, config = backbone.plan, backbone.decoder.config
    return EngineDescription(
        models=tuple(
            ModelInfo(key=item.key, parent=item.parent, version=item.version, created=item.created)
            for lane in lanes
            for item in lane.engine.backbone.instances.values()
        ),
        family=config.family,
        vocab_size=config.vocab_size,
        max_seq_len=plan.max_seq_len,
        kv_cache_len=plan.memory.kv_cache_len,
        precision=plan.precision,
        invariant=plan.config.invariant,
        device=plan.device,
        plan=plan.memory.to_dict(),
    )


def merged_stats(parts: Sequence[EngineStats]) -> EngineStats:
    """Counters and gauges added up over backbones."""
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    for part in parts:
        _add(gauges, part.gauges)
        _add(counters, part.counters)
    if gauges.get("cache_blocks"):
        gauges["cache_occupancy"] = gauges["cache_blocks_held"] / gauges["cache_blocks"]
    batches = [part.histograms["*"]["batch_size"] for part in parts]
    histograms = {key: value for part in parts for key, value in part.histograms.items() if key != "*"}
    if batches:
        counts = tuple(map(sum, zip(*(batch.counts for batch in batches), strict=True)))
        total = sum(batch.total for batch in batches)
        histograms["*"] = {"batch_size": msgspec.structs.replace(batches[0], counts=counts, total=total)}
    by_model = {key: value for part in parts for key, value in part.by_model.items()}
    return EngineStats(gauges=gauges, counters=counters, by_model=by_model, histograms=histograms)


def _add(sums: dict[str, float], values: dict[str, float]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
