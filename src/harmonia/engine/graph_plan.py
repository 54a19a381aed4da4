"""Which steps are captured as graphs, and what they take. See engine/steps.py for how they run."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.layers.linear import WeightFormat
from harmonia.models import ModelConfig
from harmonia.models.sizes import activation_bytes

_LAYER_BYTES = 240 << 10
"""What the driver keeps of one layer's kernels in one graph: 8 MiB for 36 layers (CUDA 13.0, H100)."""
_WORKSPACE_BYTES = 32 << 20
"""Of the vendor's products, for the stream on which graphs are captured."""
_FP32_BYTES = 4
LONGEST_PROMPTS = 1536
"""Tokens of the largest step with prompts that is captured."""
_VERIFIED_ROWS = 512
"""Rows of a step with proposals, at most. With more a GPU computes rather than reads weights (an H100 from some 300
on), so that another proposal costs what another token does. And so every such step is a captured one."""


def graph_sizes(max_rows: int) -> list[int]:
    """Numbers of rows that graphs are captured for: at most a fifth of a large batch is padding."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, max_rows + 1, 64)]
    return sorted({*(size for size in sizes if size < max_rows), max_rows})


def draft_graph_sizes(max_running: int) -> list[int]:
    """The same for a draft: after a step with proposals it lacks one token or two of a sequence, each a row.

    Fewer sizes, for a row more costs little beside reading its weights: at most half of a batch is padding.
    """
    max_rows = min(2 * max_running, max_verified_rows(max_running))
    return sorted({*(1 << doubled for doubled in range(max_rows.bit_length())), max_rows})


def max_verified_rows(max_running: int) -> int:
    """Rows that a step samples from, at most, with all their proposals."""
    return max(_VERIFIED_ROWS, max_running)


def verified_rows(scheduler: SchedulerConfig, num_draft_steps: int) -> int:
    """The same where so many tokens are proposed to a sequence, at most; without any one row for each sequence."""
    assert scheduler.max_batch_tokens is not None, "the plan resolves it"
    max_running = scheduler.max_running
    wanted = min(max_running * (1 + num_draft_steps), scheduler.max_batch_tokens)
    return max(max_running, min(wanted, max_verified_rows(max_running)))


def prompt_sizes(max_batch_tokens: int) -> list[int]:
    """Tokens of steps with prompts that graphs are captured for: at most half of one is padding.

    Beyond the last one a GPU computes for about as long as its host takes to launch a step (45 ms beside an H100). Each
    takes a quarter of a second of the start.
    """
    sizes = [64, 128, 256, 384, 512, 768, 1024, LONGEST_PROMPTS]
    return sorted({*(size for size in sizes if size < max_batch_tokens), min(max_batch_tokens, LONGEST_PROMPTS)})


def draft_prompt_sizes(max_batch_tokens: int) -> list[int]:
    """The same for a draft, which is soon done with padding: one of 0.6 billion weights takes 3 ms for the largest."""
    sizes = [128, 512]
    return sorted({*(size for size in sizes if size < max_batch_tokens), min(max_batch_tokens, LONGEST_PROMPTS)})


def captures(model: ModelConfig, config: EngineConfig, device: str) -> bool:
    """Whether steps are captured: on a GPU, unless switched off; with experts the host asks which are used."""
    return config.graphs and device == "cuda" and model.moe is None


def graph_bytes(
    model: ModelConfig,
    config: EngineConfig,
    fmt: WeightFormat,
    num_rows: Sequence[int],
    *,
    adapted: bool = False,
    is_draft: bool = False,
) -> int:
    """Memory of all graphs, of single tokens for so many rows and of prompts.

    config: with everything in `scheduler` resolved. adapted: they are captured with adapters, too. is_draft: those for
    single tokens are captured with the choice of the next ones, too.
    """
    if not captures(model, config, fmt.device.type):
        return 0
    assert config.scheduler.max_batch_tokens is not None, "the plan resolves it"
    prompts = draft_prompt_sizes if is_draft else prompt_sizes
    sizes = [*num_rows, *prompts(config.scheduler.max_batch_tokens)]
    sizes *= 2 if adapted else 1
    sizes += num_rows if is_draft else ()
    activations = activation_bytes(model, fmt, max(sizes))  # they share memory, but for what they give
    outputs = sum(sizes) * model.hidden_size * fmt.dtype.itemsize
    logits = config.scheduler.max_running * model.vocab_size * _FP32_BYTES if is_draft else 0
    return len(sizes) * model.num_layers * _LAYER_BYTES + _WORKSPACE_BYTES + activations + outputs + logits
