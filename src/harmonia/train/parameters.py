"""What one instance trains: fp32 masters, summed gradients, and Adam's state.

The model computes with *leaves*: autograd leaves in the compute type, such as the rows of an adapter in the bank. All
their gradients lie in one flat fp32 buffer, and the optimizer moves fp32 masters that are then written to the leaves.
Leaves that are fp32 and belong to nobody else are their own masters.

Shapes: P numbers of all leaves side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.kernels.optimizer import AdamState, AdamStep, adamw, write_leaves

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ParameterSet:
    """Named tensors that one optimizer moves together."""

    def __init__(self, leaves: Mapping[str, Tensor], *, own_masters: bool) -> None:
        """own_masters: False moves the leaves themselves, which must be fp32 then."""
        self._shapes = {name: leaf.shape for name, leaf in leaves.items()}
        device = next(iter(leaves.values())).device
        size = sum(leaf.numel() for leaf in leaves.values())
        self._gradient_P, mean_P, square_P = (torch.zeros(size, device=device) for _ in range(3))
        self._moments = dict(zip(_MOMENTS, (mean_P, square_P), strict=True))
        self._masters: dict[str, Tensor]
        if own_masters:
            master_P = torch.cat([leaf.detach().flatten().float() for leaf in leaves.values()])
            self._masters = dict(self._named_views(master_P))
            self._state = AdamState([master_P], [mean_P], [square_P], self._gradient_P, [self._gradient_P])
        else:
            assert all(leaf.dtype is torch.float32 for leaf in leaves.values())
            self._masters = {name: leaf.detach() for name, leaf in leaves.items()}
            lists = (list(dict(self._named_views(flat_P)).values()) for flat_P in (mean_P, square_P, self._gradient_P))
            means, squares, gradients = lists
            self._state = AdamState(list(self._masters.values()), means, squares, self._gradient_P, gradients)
        self.num_steps = 0
        """Steps done, which the bias correction counts."""
        self._written: tuple[int, ...] = ()
        """Addresses of the leaves that hold the masters as they are."""
        self.attach(leaves)

    def attach(self, leaves: Mapping[str, Tensor]) -> None:
        """Let the gradients of these leaves be summed here."""
        for name, view in self._named_views(self._gradient_P):
            leaf = leaves[name]
            if leaf.dtype is not torch.float32:
                leaf.grad_dtype = torch.float32
            leaf.grad = view

    def write_to(self, leaves: Mapping[str, Tensor]) -> None:
        """Copy the masters into leaves, rounded to their type; nothing to do where the last step wrote them."""
        addresses = self._addresses(leaves)
        if addresses != self._written:
            write_leaves(self._state.masters, [leaves[name] for name in self._shapes])
            self._written = addresses

    def restart_from(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the masters and begin anew; `InvalidRequestError` when names or shapes differ."""
        _require_same(values, self._masters, "weights")
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(values[name])
            for moments_P in self._moments.values():
                moments_P.zero_()
        self.num_steps, self._written = 0, ()

    def drop_gradient(self) -> None:
        """Forget what was summed."""
        self._gradient_P.zero_()

    def step(
        self, leaves: Mapping[str, Tensor], *, lr: float, wd: float, max_grad_norm: float, num_samples: int
    ) -> float:
        """Move the masters by the mean gradient and write them to `leaves`: its norm before clipping.

        Not finite: nothing moves. The sums are forgotten either way.
        """
        step = AdamStep(lr, wd, max_grad_norm, num_samples, self.num_steps + 1)
        with torch.no_grad():
            norm = float(adamw(self._state, step, [leaves[name] for name in self._shapes]))
        if math.isfinite(norm):
            self.num_steps += 1
            self._written = self._addresses(leaves)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, as views: what a resumed run needs besides `num_steps`."""
        tensors = {f"{name}.master": master for name, master in self._masters.items()}
        for moment, moments_P in self._moments.items():
            tensors |= {f"{name}.{moment}": value for name, value in self._named_views(moments_P)}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], num_steps: int) -> None:
        """Take over what `state` gave; `InvalidRequestError` when it belongs to something else."""
        own = self.state()
        _require_same(tensors, own, "optimizer state")
        with torch.no_grad():
            for name, target in own.items():
                target.copy_(tensors[name])
        self.num_steps, self._written = num_steps, ()

    def _named_views(self, flat_P: Tensor) -> Iterator[tuple[str, Tensor]]:
        start = 0
        for name, shape in self._shapes.items():
            yield name, flat_P[start : start + shape.numel()].view(shape)
            start += shape.numel()

    def _addresses(self, leaves: Mapping[str, Tensor]) -> tuple[int, ...]:
        return tuple(leaves[name].data_ptr() for name in self._shapes)


def _require_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    for name in {**wanted, **found}:
        shapes = [list(tensors[name].shape) if name in tensors else "nothing" for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise InvalidRequestError(
                f"the saved {what} does not fit this instance: {name!r} is {shapes[0]} there and {shapes[1]} here; "
                "load it into an instance that was spawned with the same adapter settings"
            )


def num_state_bytes(num_parameters: int, *, own_masters: bool) -> int:
    """Bytes of gradient, moments and, where they are apart, masters of so many trained numbers."""
    return num_parameters * 4 * (4 if own_masters else 3)
