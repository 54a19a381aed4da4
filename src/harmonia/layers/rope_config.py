"""Settings of one rotary position embedding: plain data, importable without torch."""

from __future__ import annotations

from typing import Literal

import msgspec

RopeKind = Literal["default", "linear", "llama3", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Base frequency and the way it is stretched beyond the pretraining length."""

    base: float = 10_000.0
    """Wavelength base, `rope_theta`."""
    kind: RopeKind = "default"
    """How frequencies are scaled."""
    factor: float = 1.0
    """How many times longer than in pretraining; all kinds but `default`."""
    original_max_seq_len: int = 0
    """Length of pretraining; `llama3` and `yarn`."""
    low_freq_factor: float = 1.0
    """`llama3`: wavelengths above original length / this are divided by `factor`."""
    high_freq_factor: float = 4.0
    """`llama3`: wavelengths below original length / this stay."""
    attention_factor: float | None = None
    """`yarn`: multiplies cos and sin; None follows from the factor."""
    beta_fast: float = 32.0
    """`yarn`: rotations over the original length above which a frequency stays."""
    beta_slow: float = 1.0
    """`yarn`: rotations below which a frequency is divided by `factor`."""
    mscale: float | None = None
    """`yarn`: numerator's weight in the automatic attention factor."""
    mscale_all_dim: float | None = None
    """`yarn`: denominator's weight in the automatic attention factor."""
    truncate: bool = True
    """`yarn`: round the ends of the ramp to whole dimensions."""
    divisors: tuple[float, ...] = ()
    """One per frequency, as GGUF files store Llama 3's scaling; empty divides by nothing."""
