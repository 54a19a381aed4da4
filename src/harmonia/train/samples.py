"""One training sample as arrays: the tokens that pass through the model and the rows of hidden states that are read.

Shapes: N tokens as given, T tokens that pass through the model, W weighted tokens.

The state at row i-1 predicts token i, so a weighted token i is read at row i-1, and nothing after the last such row
needs to be computed. Losses of the last token read the state of that token itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from harmonia.errors import InvalidRequestError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
IntList = Sequence[int] | npt.NDArray[np.integer[Any]]
FloatList = Sequence[float] | npt.NDArray[np.floating[Any]]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens and the rows that a loss reads. Without weighted tokens T is 0: there is nothing to run, only to count."""

    token_ids_T: Ints
    """What passes through the model: up to the last row that is read."""

    rows_W: Ints
    """Row of the hidden state that is read for each weighted token, ascending."""

    targets_W: Ints
    """The token whose log-probability is read at each row; scores do not look at it."""

    weights_W: Floats
    """Never 0 where a loss multiplies by them."""

    num_tokens: int
    """N, what counts against limits of length."""

    @classmethod
    def from_weighted(cls, token_ids: IntList, weights: FloatList) -> Self:
        """Reads every token whose weight is not 0; both lists have length N, and position 0 has no weight."""
        ids_N, weights_N = _token_ids("token_ids", token_ids), finite_vector("weights", weights)
        if len(ids_N) != len(weights_N):
            _refuse("weights", f"weights has {len(weights_N)} values for {len(ids_N)} tokens: give one per token")
        if weights_N[0] != 0:
            _refuse(
                "weights",
                f"weights[0] is {weights_N[0]:g}, but no state predicts the token at position 0: set its weight to 0",
            )
        return cls._reading(ids_N, np.roll(ids_N, -1), np.roll(weights_N, -1))

    @classmethod
    def last_token(cls, token_ids: IntList) -> Self:
        """Reads the state of the last token only."""
        ids_T = _token_ids("token_ids", token_ids)
        return cls(ids_T, np.array([len(ids_T) - 1]), ids_T[-1:], np.ones(1, np.float32), len(ids_T))

    @classmethod
    def from_tangents(cls, inputs: IntList, targets: IntList, tangents: FloatList) -> Self:
        """Reads `targets[i]` at row i with weight `tangents[i]`; positions whose tangent is 0 are not read.

        All three lists have length N. All tangents may be 0, as they are when every reward of a group is the same.
        """
        inputs_N, targets_N = _token_ids("inputs", inputs), _token_ids("targets", targets)
        tangents_N = vector("tangents", tangents)
        if not len(inputs_N) == len(targets_N) == len(tangents_N):
            lengths = f"{len(inputs_N)}, {len(targets_N)} and {len(tangents_N)}"
            _refuse("tangents", f"inputs, targets and tangents have lengths {lengths}: give one of each per position")
        return cls._reading(inputs_N, targets_N, tangents_N)

    @classmethod
    def _reading(cls, inputs_N: Ints, targets_N: Ints, weights_N: npt.NDArray[np.float64]) -> Self:
        rows_W = np.flatnonzero(weights_N)
        length = int(rows_W[-1]) + 1 if len(rows_W) else 0
        weights_W = weights_N[rows_W].astype(np.float32)
        return cls(inputs_N[:length].copy(), rows_W, targets_N[rows_W], weights_W, len(inputs_N))


def vector(name: str, values: FloatList) -> npt.NDArray[np.float64]:
    """A flat list of numbers, else an `InvalidRequestError` that calls the list `name`.

    NaN is let through: rewards go wrong in the middle of a run, and `optim_step` decides what becomes of it.
    """
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name} is no list of numbers: {error}", field=name) from error
    if numbers.ndim != 1:
        _refuse(name, f"{name} has {numbers.ndim} dimensions: give a flat list of numbers")
    return numbers


def finite_vector(name: str, values: FloatList) -> npt.NDArray[np.float64]:
    """A list of numbers that fp32 can hold, else an `InvalidRequestError` that calls the list `name`."""
    numbers = vector(name, values)
    bad = np.flatnonzero(~(np.abs(numbers) <= _LARGEST))
    if len(bad):
        _refuse(name, f"{name}[{bad[0]}] is {numbers[bad[0]]}: give finite numbers within ±{_LARGEST:.3g}")
    return numbers


def _token_ids(name: str, values: IntList) -> Ints:
    try:
        ids = np.asarray(values)
    except ValueError as error:
        raise InvalidRequestError(f"{name} is not a flat list of token ids: {error}", field=name) from error
    if ids.size == 0:
        _refuse(name, f"{name} is empty: a sample needs at least one token")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        _refuse(name, f"{name} holds {ids.dtype} in {ids.ndim} dimensions: give a flat list of token ids")
    ids = ids.astype(np.int64)
    bad = np.flatnonzero(ids < 0)
    if len(bad):
        _refuse(name, f"{name}[{bad[0]}] is {ids[bad[0]]}: token ids are 0 or more")
    return ids


def _refuse(field: str, message: str) -> NoReturn:
    raise InvalidRequestError(message, field=field)
