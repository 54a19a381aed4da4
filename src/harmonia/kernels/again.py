"""Inputs of a backward pass that are computed again instead of kept.

A product needs its input once more for the gradient of its weight. Where the input came out of a norm or a gate, which
keep what they were computed from and take a fortieth of the product's time, the product holds on to their node in the
graph instead, and has it compute its output again. For an adapter on Qwen3-8B a layer so keeps 84 KiB a token of 126.

Operations that can do so set `ctx.again`, a function from their context, whose saved tensors are still there, to their
outputs; those that need their inputs in the backward pass call `keep` and `kept` where they would call
`save_for_backward` and `saved_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

_KEEPS_LESS = ContextVar("harmonia_keeps_less", default=False)


@contextmanager
def keeping_less(active: bool = True) -> Iterator[None]:
    """What runs inside, if `active`, computes in its backward pass again what is cheap to compute."""
    token = _KEEPS_LESS.set(active)
    try:
        yield
    finally:
        _KEEPS_LESS.reset(token)


def keep(ctx: Any, *tensors: Tensor) -> None:
    """Keep tensors for the backward pass, or what makes them again."""
    ctx.made = [_maker(tensor) for tensor in tensors] if _KEEPS_LESS.get() else None
    ctx.save_for_backward(*(tensors if ctx.made is None else _others(tensors, ctx.made)))


def kept(ctx: Any) -> tuple[Tensor, ...]:
    """The tensors that `keep` was given; none if it was not called."""
    made: list[_Made | None] | None = getattr(ctx, "made", None)
    if made is None:
        return ctx.saved_tensors
    nodes = {id(its.node): its.node for its in made if its is not None}
    outputs = {key: node.again(node) for key, node in nodes.items()}
    pairs = zip(ctx.saved_tensors, made, strict=True)
    return tuple(tensor if its is None else outputs[id(its.node)][its.output] for tensor, its in pairs)


def is_made(tensor: Tensor) -> bool:
    """The tensor came out of an operation that keeps what it needs to compute it again."""
    return hasattr(tensor.grad_fn, "again")


class _Made(NamedTuple):
    """A tensor as an output of a node."""

    node: Any
    output: int


def _maker(tensor: Tensor) -> _Made | None:
    return _Made(tensor.grad_fn, tensor.output_nr) if is_made(tensor) else None


def _others(tensors: tuple[Tensor, ...], made: list[_Made | None]) -> list[Tensor | None]:
    return [tensor if its is None else None for tensor, its in zip(tensors, made, strict=True)]
