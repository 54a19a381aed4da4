"""Comparing gradients, and what a forward pass keeps for them."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-5


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE, least: float = 1e-20) -> None:
    """The largest difference, relative to the largest number, which counts as `least` if it is smaller."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    if expected.numel():
        scale = max(float(expected.abs().max()), least)
        assert float((actual - expected).abs().max()) <= tolerance * scale


def gradients(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor, seed: int = 0) -> list[Tensor]:
    """Outputs, then gradients of all inputs against fixed random gradients of the outputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(output.shape, generator=generator) for output in outputs]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, leaves, given)]


def kept(function: Callable[..., object], *inputs: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor kept for backward."""
    found = []

    def pack(tensor: Tensor) -> Tensor:
        found.append((tensor.shape, tensor.dtype))
        return tensor

    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*leaves)
    return found
