"""What a runtime is and does, in the terms of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from harmonia.engine.instances import Instances
from harmonia.engine.requests import EngineDescription
from harmonia.engine.stats import EngineStats

_SHARES = {"cache_occupancy"}


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
    descriptions = [lane.engine.describe() for lane in lanes]
    models = tuple(model for item in descriptions for model in item.models)
    return msgspec.structs.replace(descriptions[0], models=models)


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
