"""What one instance trains: fp32 masters, summed gradients, and Adam's state.

The model computes with *leaves*: autograd leaves in the compute type, such as the rows of an adapter in the bank. All
their gradients lie in one flat fp32 buffer, and the optimizer moves fp32 masters that are then written to the leaves.
Leaves that are fp32 and belong to nobody else are their own masters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harmonia.errors import InvalidRequestError

BETAS = (0.9, 0.999)
EPS = 1e-8
_MOMENTS = ("exp_avg", "exp_avg_sq")


class ParameterSet:
    """Named tensors that one optimizer moves together.

    Decoupled weight decay: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    def __init__(self, leaves: Mapping[str, Tensor], *, own_masters: bool) -> None:
        """own_masters: False moves the leaves themselves, which must be fp32 then."""
        self._shapes = {name: leaf.shape for name, leaf in leaves.items()}
        device = next(iter(leaves.values())).device
        size = sum(leaf.numel() for leaf in leaves.values())
        self._gradient_P = torch.zeros(size, device=device)
        self._masters: dict[str, Tensor]
        if own_masters:
            master_P = torch.cat([leaf.detach().flatten().float() for leaf in leaves.values()])
            self._masters = dict(self._named_views(master_P))
            moved = [master_P]
            master_P.grad = self._gradient_P
        else:
            assert all(leaf.dtype is torch.float32 for leaf in leaves.values())
            self._masters = {name: leaf.detach() for name, leaf in leaves.items()}
            moved = list(self._masters.values())
            for name, view in self._named_views(self._gradient_P):
                self._masters[name].grad = view
        self._adam = torch.optim.AdamW(moved, betas=BETAS, eps=EPS, fused=True)
        self._moved = moved
        self._create_state()
        self.attach(leaves)

    @property
    def num_bytes(self) -> int:
        """Bytes that this holds beside the leaves."""
        moments = sum(int(self._adam.state[moved][name].nbytes) for moved in self._moved for name in _MOMENTS)
        return self._gradient_P.nbytes + moments + (self._moved[0].nbytes if len(self._moved) == 1 else 0)

    @property
    def num_steps(self) -> int:
        """Steps done, which the bias correction counts."""
        return int(float(self._adam.state[self._moved[0]]["step"]))

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        for moved in self._moved:
            self._adam.state[moved]["step"].fill_(value)

    def attach(self, leaves: Mapping[str, Tensor]) -> None:
        """Let the gradients of these leaves be summed here."""
        for name, view in self._named_views(self._gradient_P):
            leaf = leaves[name]
            if leaf.dtype is not torch.float32:
                leaf.grad_dtype = torch.float32
            leaf.grad = view

    def write_to(self, leaves: Mapping[str, Tensor]) -> None:
        """Copy the masters into leaves, rounded to their type."""
        with torch.no_grad():
            for name, master in self._masters.items():
                if leaves[name].data_ptr() != master.data_ptr():
                    leaves[name].copy_(master)

    def restart_from(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the masters and begin anew; `InvalidRequestError` when names or shapes differ."""
        _require_same(values, self._masters, "weights")
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(values[name])
            for moved in self._moved:
                for moment in _MOMENTS:
                    self._adam.state[moved][moment].zero_()
        self.num_steps = 0

    def drop_gradient(self) -> None:
        """Forget what was summed."""
        self._gradient_P.zero_()

    def step(self, *, lr: float, wd: float, max_grad_norm: float, num_samples: int) -> float:
        """Move the masters by the mean gradient: its norm before clipping. Not finite: nothing moves.

        The sums are forgotten either way.
        """
        norm = float(torch.linalg.vector_norm(self._gradient_P)) / num_samples
        if math.isfinite(norm):
            clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm > 0 else 1.0
            self._gradient_P.mul_(clip / num_samples)
            for group in self._adam.param_groups:
                group["lr"], group["weight_decay"] = lr, wd
            self._adam.step()
        self.drop_gradient()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, as views: what a resumed run needs besides `num_steps`."""
        tensors = {f"{name}.master": master for name, master in self._masters.items()}
        for moment in _MOMENTS:
            tensors |= {f"{name}.{moment}": value for name, value in self._moment_views(moment)}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], num_steps: int) -> None:
        """Take over what `state` gave; `InvalidRequestError` when it belongs to something else."""
        own = self.state()
        _require_same(tensors, own, "optimizer state")
        with torch.no_grad():
            for name, target in own.items():
                target.copy_(tensors[name])
        self.num_steps = num_steps

    def _named_views(self, flat_P: Tensor) -> Iterator[tuple[str, Tensor]]:
        start = 0
        for name, shape in self._shapes.items():
            yield name, flat_P[start : start + shape.numel()].view(shape)
            start += shape.numel()

    def _moment_views(self, moment: str) -> Iterator[tuple[str, Tensor]]:
        states = [self._adam.state[moved][moment] for moved in self._moved]
        if len(states) == 1 and len(self._shapes) > 1:
            yield from self._named_views(states[0])
        else:
            for (name, shape), state in zip(self._shapes.items(), states, strict=True):
                yield name, state.view(shape)

    def _create_state(self) -> None:
        """Adam's buffers now, not in the first step: they are part of the plan."""
        for moved in self._moved:
            self._adam.state[moved] = {
                "step": torch.zeros((), device=moved.device),
                **{moment: torch.zeros_like(moved) for moment in _MOMENTS},
            }


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
