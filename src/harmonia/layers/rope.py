"""Rotary position embeddings and their scaled variants, as tables.

Shapes: D head size, C positions of the table, F = D / 2 frequencies.
Frequencies are computed in fp32 in the order of operations that transformers uses, so that tables agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harmonia.layers.rope_config import RopeConfig, RopeKind


@dataclass(frozen=True, slots=True)
class Rope:
    """The table of one base and scaling, shared by the layers that use it."""

    cos_sin_CD: Tensor
    """fp32: cos in the first half of a row, sin in the second."""

    @staticmethod
    def create(config: RopeConfig, head_dim: int, max_seq_len: int, device: torch.device) -> Rope:
        """Table for positions 0 to max_seq_len - 1."""
        if device.type == "meta":
            return Rope(torch.empty(max_seq_len, head_dim, device=device))
        freq_F = inverse_frequencies(config, head_dim)
        angle_CF = torch.arange(max_seq_len, dtype=torch.float32)[:, None] * freq_F
        scale = attention_factor(config)
        table_CD = torch.empty(max_seq_len, head_dim)
        torch.mul(angle_CF.cos(), scale, out=table_CD[:, : head_dim // 2])
        torch.mul(angle_CF.sin_(), scale, out=table_CD[:, head_dim // 2 :])
        return Rope(table_CD.to(device))


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position, scaled: freq_F."""
    power_F = config.base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    freq_F = _SCALINGS[config.kind](config, power_F, head_dim)
    if config.divisors:
        freq_F = freq_F / torch.tensor(config.divisors, dtype=torch.float32)
    return freq_F


def attention_factor(config: RopeConfig) -> float:
    """What cos and sin are multiplied by; 1 except with `yarn`."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _default(config: RopeConfig, power_F: Tensor, head_dim: int) -> Tensor:
    return 1.0 / power_F


def _linear(config: RopeConfig, power_F: Tensor, head_dim: int) -> Tensor:
    return 1.0 / power_F / config.factor


def _llama3(config: RopeConfig, power_F: Tensor, head_dim: int) -> Tensor:
    """Keep short wavelengths, divide long ones, and pass smoothly between (Llama 3.1)."""
    freq_F = 1.0 / power_F
    low, high = config.low_freq_factor, config.high_freq_factor
    wavelength_F = 2 * math.pi / freq_F
    is_long_F = wavelength_F > config.original_max_seq_len / low
    is_short_F = wavelength_F < config.original_max_seq_len / high
    smooth_F = (config.original_max_seq_len / wavelength_F - low) / (high - low)
    between_F = (1 - smooth_F) * freq_F / config.factor + smooth_F * freq_F
    scaled_F = torch.where(is_long_F, freq_F / config.factor, between_F)
    return torch.where(is_short_F, freq_F, scaled_F)


def _yarn(config: RopeConfig, power_F: Tensor, head_dim: int) -> Tensor:
    """Divide slow rotations, keep fast ones, with a linear ramp between (Peng et al., YaRN, 2023)."""

    def dimension(rotations: float) -> float:
        wavelength = config.original_max_seq_len / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(config.base))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp_F = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep_F = 1 - ramp_F
    return 1.0 / (config.factor * power_F) * (1 - keep_F) + 1.0 / power_F * keep_F


_SCALINGS: dict[RopeKind, Callable[[RopeConfig, Tensor, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
