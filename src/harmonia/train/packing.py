"""Samples side by side in one flat row, and what a pass over them is cut into.

Shapes: T tokens of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harmonia.kernels.lora import LoraBatch, LoraSegment
from harmonia.layers.forward import Forward, PackedAttention
from harmonia.models.decoder import Decoder
from harmonia.train.samples import Sample


class Slice(NamedTuple):
    """A piece of work between two looks at what else there is to do."""

    kind: str
    num_tokens: int
    """That it takes in, which its duration grows with."""


def packed_tokens(samples: Sequence[Sample], device: torch.device) -> Tensor:
    """token_ids_T of all samples, one after another."""
    return to_device(np.concatenate([sample.token_ids_T for sample in samples]), device)


def packed_forward(decoder: Decoder, samples: Sequence[Sample], segments: Sequence[LoraSegment]) -> Forward:
    """How these samples pass through a decoder; segments: tokens that an adapter changes."""
    lengths = tuple(len(sample.token_ids_T) for sample in samples)
    positions_T = np.concatenate([np.arange(length) for length in lengths])
    attention = PackedAttention(lengths, decoder.fmt.invariant)
    return Forward(to_device(positions_T, decoder.fmt.device), attention, LoraBatch.of(segments))


def chunks(start: int, stop: int, size: int) -> list[slice]:
    """Parts of about the same size."""
    count = -(-(stop - start) // size)
    ends = [start + (stop - start) * index // count for index in range(count + 1)] if count else [start]
    return [slice(*pair) for pair in pairwise(ends)]


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Without waiting for what the device does."""
    values = torch.from_numpy(np.ascontiguousarray(array))
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
