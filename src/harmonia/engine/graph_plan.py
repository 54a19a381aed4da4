"""Which decode steps are captured as graphs, and what they take. See engine/steps.py for how they run."""

from __future__ import annotations

from harmonia.config import EngineConfig
from harmonia.layers.linear import WeightFormat
from harmonia.models import ModelConfig
from harmonia.models.sizes import activation_bytes

_LAYER_BYTES = 240 << 10
"""What the driver keeps of one layer's kernels in one graph: 8 MiB for 36 layers (CUDA 13.0, H100)."""
_WORKSPACE_BYTES = 32 << 20
"""Of the vendor's products, for the stream on which graphs are captured."""


def graph_sizes(max_running: int) -> list[int]:
    """Batch sizes that graphs are captured for: at most a fifth of a large batch is padding."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, max_running + 1, 64)]
    return sorted({*(size for size in sizes if size < max_running), max_running})


def captures(model: ModelConfig, config: EngineConfig, device: str) -> bool:
    """Whether decode steps are captured: on a GPU, unless switched off; with experts the host asks which are used."""
    return config.graphs and device == "cuda" and model.moe is None


def graph_bytes(model: ModelConfig, config: EngineConfig, fmt: WeightFormat, *, adapted: bool) -> int:
    """Memory of all graphs; `adapted` ones are captured beside those without adapters."""
    if not captures(model, config, fmt.device.type):
        return 0
    max_running = config.scheduler.max_running
    num_graphs = len(graph_sizes(max_running)) * (2 if adapted else 1)
    activations = activation_bytes(model, fmt, max_running)
    return num_graphs * model.num_layers * _LAYER_BYTES + _WORKSPACE_BYTES + activations
