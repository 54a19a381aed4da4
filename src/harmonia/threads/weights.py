"""Weights of turns: 32-bit floats, spread over the tokens of a turn by its flavor."""

from __future__ import annotations

import ctypes
import math

from harmonia.protocol.threads import TokenThreadData, TokenTurn


def float32(value: float) -> float:
    """The nearest 32-bit float; OverflowError where that is not finite."""
    rounded = ctypes.c_float(value).value
    if not math.isfinite(rounded):
        raise OverflowError(f"{value} is not a finite 32-bit float")
    return rounded


def shortest(value: float) -> float:
    """The float of fewest decimal digits that names the same 32-bit float: JSON reads 0.1 and not 0.10000000149."""
    target = float32(value)
    candidates = (float(f"{target:.{digits}g}") for digits in range(1, 10))
    return next(c for c in candidates if _names(c, target))


def _names(candidate: float, target: float) -> bool:
    try:
        return float32(candidate) == target
    except OverflowError:  # few digits of the largest float may round up beyond it
        return False


def token_weights(data: TokenThreadData) -> tuple[float, ...]:
    """One weight per token of the conversation; tokens outside of turns, such as role headers, have none."""
    weights = [0.0] * len(data.token_ids)
    for turn in data.turns:
        weights[turn.start : turn.stop] = _spread(turn)
    return tuple(weights)


def _spread(turn: TokenTurn) -> list[float]:
    count = turn.stop - turn.start
    if count == 0:
        return []
    match turn.flavor:
        case "PerToken":
            return [turn.weight] * count
        case "Normalized":
            return [turn.weight / count] * count
        case "LastToken":
            return [0.0] * (count - 1) + [turn.weight]
