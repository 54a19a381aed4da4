"""What captured graphs take, and when there are any."""

from __future__ import annotations

import msgspec
import pytest
import torch

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.engine.graph_plan import (
    captures,
    draft_graph_sizes,
    draft_prompt_sizes,
    graph_bytes,
    graph_sizes,
    max_verified_rows,
    prompt_sizes,
    verified_rows,
)
from harmonia.layers.linear import WeightFormat
from tests.unit.engine.tiny import MODEL

GPU = WeightFormat(torch.bfloat16, torch.device("cuda"))
CONFIG = EngineConfig(device="cuda", scheduler=SchedulerConfig(max_batch_tokens=8192))


@pytest.mark.parametrize("max_running", [1, 3, 8, 100, 256, 1000])
def test_graphs_cover_every_batch_with_little_padding(max_running: int) -> None:
    sizes = graph_sizes(max_running)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_running
    for num_rows in range(1, max_running + 1):
        padded = min(size for size in sizes if size >= num_rows)
        assert padded - num_rows <= max(7, 0.25 * num_rows)


@pytest.mark.parametrize("max_running", [1, 3, 8, 100, 256, 1000])
def test_graphs_cover_every_pass_of_a_draft(max_running: int) -> None:
    """One token of each sequence, or two."""
    sizes = draft_graph_sizes(max_running)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(2 * max_running, max(512, max_running))
    for num_rows in range(1, sizes[-1] + 1):
        padded = min(size for size in sizes if size >= num_rows)
        assert padded < 2 * num_rows


@pytest.mark.parametrize(
    ("max_running", "num_steps", "max_batch_tokens", "expected"),
    [
        *((256, 0, 8192, 256), (1, 4, 8192, 5), (64, 4, 8192, 320), (256, 4, 8192, 512)),
        *((600, 8, 8192, 600), (8, 8, 24, 24)),
    ],
)
def test_rows_to_verify_are_bounded(max_running: int, num_steps: int, max_batch_tokens: int, expected: int) -> None:
    scheduler = SchedulerConfig(max_running=max_running, max_batch_tokens=max_batch_tokens)
    assert verified_rows(scheduler, num_steps) == expected <= max_verified_rows(max_running)


@pytest.mark.parametrize("max_batch_tokens", [1, 24, 100, 512, 2048, 8192])
def test_graphs_cover_prompts_with_little_padding(max_batch_tokens: int) -> None:
    sizes = prompt_sizes(max_batch_tokens)
    assert sizes[-1] == draft_prompt_sizes(max_batch_tokens)[-1]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(max_batch_tokens, 1536)
    for num_tokens in range(1, sizes[-1] + 1):
        padded = min(size for size in sizes if size >= num_tokens)
        assert padded - num_tokens <= max(63, num_tokens)


def test_graphs_are_counted_where_there_are_any() -> None:
    sizes = graph_sizes(256)
    plain = graph_bytes(MODEL, CONFIG, GPU, sizes)
    assert plain > 32 << 20
    assert graph_bytes(MODEL, CONFIG, GPU, sizes, adapted=True) > plain
    assert graph_bytes(MODEL, CONFIG, GPU, graph_sizes(512)) > plain
    assert graph_bytes(MODEL, CONFIG, GPU, sizes, is_draft=True) > plain
    assert graph_bytes(MODEL, msgspec.structs.replace(CONFIG, graphs=False), GPU, sizes, adapted=True) == 0
    assert graph_bytes(MODEL, CONFIG, WeightFormat(torch.float32, torch.device("cpu")), sizes, adapted=True) == 0
    assert not captures(MODEL, CONFIG, "cpu")
