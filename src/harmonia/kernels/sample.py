"""Choosing the next token of each row.

Every token of the vocabulary draws a waiting time from a hash of the row's key and its own id, and the token whose
time divided by its probability is least wins: an exponential race, which draws from exactly the given distribution. A
row's key depends on its seed and position alone, so the draw does not depend on the rest of the batch; and rounding
noise in a logit changes it only if it changes the order of the two fastest.
Shapes: R rows, V vocabulary, W words of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels import gpu, native
from harmonia.kernels.native import Impl
from harmonia.kernels.sample_native import draw_native
from harmonia.kernels.splitmix import FACTORS, GOLDEN, signed

_BITS = 32
_GOLDEN = signed(GOLDEN)
_FACTORS = (signed(FACTORS[0]), signed(FACTORS[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """Counts of the tokens so far, for rows that penalise them."""

    rows_P: Tensor
    """int64: which rows."""
    answer_counts_PV: Tensor
    """float32: occurrences in the answer."""
    seen_PV: Tensor
    """bool: occurs in prompt or answer."""
    repetition_P: Tensor
    presence_P: Tensor
    frequency_P: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTensors:
    """Settings of all rows; what no row uses is None and costs nothing."""

    temperature_R: Tensor | None = None
    """float32, 0 is greedy; None: every row is."""
    keys_R: Tensor | None = None
    """int64, all bits random: one for each draw."""
    top_k_R: Tensor | None = None
    """int64, the vocabulary's size for rows without."""
    top_p_R: Tensor | None = None
    min_p_R: Tensor | None = None
    bias: tuple[Tensor, Tensor, Tensor] | None = None
    """(rows, token ids, values to add)."""
    banned: tuple[Tensor, Tensor] | None = None
    """(rows, token ids) that must not come yet."""
    penalties: Penalties | None = None
    masks: tuple[Tensor, Tensor] | None = None
    """(rows, int32 words [rows, W]) with a bit for each allowed token."""


def sample(logits_RV: Tensor, params: SamplingTensors, impl: Impl = "auto") -> Tensor:
    """Next token of each row: ids_R. `logits_RV` is fp32 and stays as it is."""
    logits_RV = _edit(logits_RV, params)
    if impl == "triton" or (impl == "auto" and gpu.usable(logits_RV)):
        return _sample_triton(logits_RV, params)
    if params.temperature_R is None:
        return logits_RV.argmax(dim=-1)
    assert params.keys_R is not None, "rows that sample bring their keys"
    if impl == "native" or (impl == "auto" and native.usable(logits_RV)):
        filters = params.top_k_R, params.top_p_R, params.min_p_R
        return draw_native(logits_RV, params.temperature_R, params.keys_R, *filters)
    greedy_R = logits_RV.argmax(dim=-1)
    is_greedy_R = params.temperature_R == 0
    temperature_R1 = torch.where(is_greedy_R, 1.0, params.temperature_R)[:, None]
    probs_RV = _filter(torch.softmax(logits_RV / temperature_R1, dim=-1), params)
    return torch.where(is_greedy_R, greedy_R, _race(probs_RV, params.keys_R))


def _sample_triton(logits_RV: Tensor, params: SamplingTensors) -> Tensor:
    from harmonia.kernels.sample_triton import draw_triton, greedy_triton  # a CPU install has no Triton

    if params.temperature_R is None:
        return greedy_triton(logits_RV)
    assert params.keys_R is not None, "rows that sample bring their keys"
    return draw_triton(logits_RV, params.temperature_R, params.keys_R, params.top_k_R, params.top_p_R, params.min_p_R)


def _edit(logits_RV: Tensor, params: SamplingTensors) -> Tensor:
    """Logits after penalties, biases, bans and masks; a copy if any applies."""
    edits = params.penalties, params.bias, params.banned, params.masks
    if all(edit is None for edit in edits):
        return logits_RV
    logits_RV = logits_RV.clone()
    if params.penalties is not None:
        _penalise(logits_RV, params.penalties)
    if params.bias is not None:
        rows, ids, values = params.bias
        logits_RV.index_put_((rows, ids), values, accumulate=True)
    if params.banned is not None:
        logits_RV[params.banned] = -torch.inf
    if params.masks is not None:
        rows, words_RW = params.masks
        shifts = torch.arange(_BITS, dtype=torch.int32, device=words_RW.device)
        allowed_RV = ((words_RW[:, :, None] >> shifts) & 1).flatten(1)[:, : logits_RV.shape[1]].bool()
        allowed_RV = F.pad(allowed_RV, (0, logits_RV.shape[1] - allowed_RV.shape[1]))
        logits_RV[rows] = logits_RV[rows].masked_fill(~allowed_RV, -torch.inf)
    return logits_RV


def _penalise(logits_RV: Tensor, penalties: Penalties) -> None:
    logits_PV = logits_RV[penalties.rows_P]
    repetition_P1 = penalties.repetition_P[:, None]
    scaled_PV = torch.where(logits_PV > 0, logits_PV / repetition_P1, logits_PV * repetition_P1)
    logits_PV = torch.where(penalties.seen_PV, scaled_PV, logits_PV)
    logits_PV -= penalties.frequency_P[:, None] * penalties.answer_counts_PV
    logits_PV -= penalties.presence_P[:, None] * (penalties.answer_counts_PV > 0)
    logits_RV[penalties.rows_P] = logits_PV


def _filter(probs_RV: Tensor, params: SamplingTensors) -> Tensor:
    """Zero what top_k, top_p and min_p drop; equal probabilities stand or fall together."""
    floors: list[Tensor] = []
    if params.top_k_R is not None or params.top_p_R is not None:
        sorted_RV = probs_RV.sort(dim=-1, descending=True).values
        if params.top_k_R is not None:
            floors.append(sorted_RV.gather(1, params.top_k_R[:, None] - 1))
            sorted_RV = sorted_RV * (sorted_RV >= floors[-1])
        if params.top_p_R is not None:
            kept_R1 = sorted_RV.sum(dim=-1, keepdim=True)
            before_RV = sorted_RV.cumsum(dim=-1) - sorted_RV
            num_kept_R1 = (before_RV < params.top_p_R[:, None] * kept_R1).sum(dim=-1, keepdim=True).clamp(min=1)
            floors.append(sorted_RV.gather(1, num_kept_R1 - 1))
    if params.min_p_R is not None:
        floors.append(params.min_p_R[:, None] * probs_RV.amax(dim=-1, keepdim=True))
    for floor_R1 in floors:
        probs_RV = probs_RV * (probs_RV >= floor_R1)
    return probs_RV


def _race(probs_RV: Tensor, keys_R: Tensor) -> Tensor:
    """The token that is first when each arrives after a waiting time of this rate."""
    tokens_V = torch.arange(1, probs_RV.shape[1] + 1, device=probs_RV.device) * _GOLDEN
    bits_RV = _mix(keys_R[:, None] + tokens_V)
    uniform_RV = (((bits_RV >> 32) & 0xFFFFFFFF).float() + 0.5) * 2.0**-32
    return (probs_RV / -torch.log1p(-uniform_RV)).argmax(dim=-1)


def _mix(bits: Tensor) -> Tensor:
    """The finalizer of SplitMix64 on int64, whose products wrap."""
    bits = (bits ^ _shift(bits, 30)) * _FACTORS[0]
    bits = (bits ^ _shift(bits, 27)) * _FACTORS[1]
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, count: int) -> Tensor:
    """Towards the low end, with zeros moving in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
