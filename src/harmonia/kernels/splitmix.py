"""The constants of SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""

from __future__ import annotations

GOLDEN = 0x9E3779B97F4A7C15
"""Distance between the states of neighbours."""
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Multipliers of the finalizer."""


def signed(bits: int) -> int:
    """The same 64 bits as a signed number."""
    return bits - 2**64 if bits >= 2**63 else bits
