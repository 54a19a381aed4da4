"""What captured graphs take, and when there are any."""

from __future__ import annotations

import msgspec
import pytest
import torch

from harmonia.config import EngineConfig
from harmonia.engine.graph_plan import captures, graph_bytes, graph_sizes
from harmonia.layers.linear import WeightFormat
from tests.unit.engine.tiny import MODEL

GPU = WeightFormat(torch.bfloat16, torch.device("cuda"))
CONFIG = EngineConfig(device="cuda")


@pytest.mark.parametrize("max_running", [1, 3, 8, 100, 256, 1000])
def test_graphs_cover_every_batch_with_little_padding(max_running: int) -> None:
    sizes = graph_sizes(max_running)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_running
    for num_rows in range(1, max_running + 1):
        padded = min(size for size in sizes if size >= num_rows)
        assert padded - num_rows <= max(7, 0.25 * num_rows)


def test_graphs_are_counted_where_there_are_any() -> None:
    plain = graph_bytes(MODEL, CONFIG, GPU, adapted=False)
    assert plain > 32 << 20
    assert graph_bytes(MODEL, CONFIG, GPU, adapted=True) > plain
    assert graph_bytes(MODEL, msgspec.structs.replace(CONFIG, graphs=False), GPU, adapted=True) == 0
    assert graph_bytes(MODEL, CONFIG, WeightFormat(torch.float32, torch.device("cpu")), adapted=True) == 0
    assert not captures(MODEL, CONFIG, "cpu")
