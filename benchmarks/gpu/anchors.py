"""What a user would pick instead, measured on an H100 80GB HBM3 with torch 2.11, and what is physically possible there.

Serving: vLLM 0.24 (n = 1, 8, 64, 256: 512 tokens in, 256 out; greedy, no early stop). Training: transformers + PEFT +
Liger kernels. Limits: bytes over 3.0 TB/s (read and written), FLOP over 798 TFLOP/s, both measured on that card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Anchor:
    """One figure of one row: what the peer reached, what the card allows, what we want."""

    key: str
    """`model/precision/work/figure`, as rows report it."""
    unit: str
    peer: float | None
    limit: float | None
    goal: float | None
    better: Literal["lower", "higher"] = "lower"

    def met(self, value: float) -> bool | None:
        """Whether a value reaches the goal; None without one."""
        if self.goal is None:
            return None
        return value <= self.goal if self.better == "lower" else value >= self.goal


def _rate(key: str, peer: float | None, limit: float | None, goal: float | None) -> Anchor:
    return Anchor(key, "tok/s", peer, limit, goal, "higher")


def _specdec(n: int, acceptance: float) -> Anchor:
    """Tokens a second with a draft over those without: never slower, and the better the more proposals are right."""
    goal = 2.2 if (n, acceptance) == (1, 0.8) else 0.97
    return Anchor(f"8b/bf16/specdec n={n} acceptance {acceptance}/ratio", "x", None, None, goal, "higher")


def _itl(key: str, peer: float | None, limit: float | None, goal: float | None) -> Anchor:
    return Anchor(f"{key}/itl_ms", "ms", peer, limit, goal)


ANCHORS = (
    _itl("8b/bf16/n=1", 6.81, 5.0, 5.7),
    _rate("8b/bf16/n=1/tok_s", 146, None, None),
    _itl("8b/bf16/n=8", 7.20, 5.3, 6.2),
    _rate("8b/bf16/n=8/tok_s", 1059, None, None),
    _itl("8b/bf16/n=64", 9.38, 7.0, 8.2),
    _rate("8b/bf16/n=64/tok_s", 5207, None, 5800),
    _itl("8b/bf16/n=256", 17.5, 13.0, 15.5),
    _rate("8b/bf16/n=256/tok_s", 8713, None, 9600),
    _rate("8b/bf16/prefill 16x4096/tok_s", 40481, 53000, 45000),
    Anchor("8b/bf16/sessions/turn 1 s", "s", 2.93, 2.24, 0.9 * 2.93),
    Anchor("8b/bf16/sessions/turn 2 s", "s", 2.00, 1.53, 0.9 * 2.00),
    Anchor("8b/bf16/sessions/turn 3 s", "s", 2.14, 1.69, 0.9 * 2.14),
    Anchor("8b/bf16/sessions/turn 4 s", "s", 2.31, 1.85, 0.9 * 2.31),
    _rate("8b/bf16/train 4x2048/tok_s", 6684, 24600, 13000),
    Anchor("8b/bf16/train 4x2048/peak_gb", "GB", 22.1, None, 40),
    _rate("8b/bf16/train 2x8192/tok_s", 6174, 20600, 11000),
    Anchor("8b/bf16/train 2x8192/peak_gb", "GB", 27.2, None, 75),
    Anchor("8b/bf16/start/first_token_s", "s", 69, 3, 20),
    _rate("8b/bf16/lora 0 adapters/tok_s", 5146, None, None),
    _rate("8b/bf16/lora 1 adapters/tok_s", 4287, None, 5400),
    _rate("8b/bf16/lora 4 adapters/tok_s", 3930, None, 5200),
    _itl("8b/fp8/n=1", 4.52, 2.76, 3.7),
    _itl("8b/fp8/n=64", 7.00, 4.74, 6.0),
    _itl("8b/fp8/n=256", 15.5, 10.8, 13.0),
    _rate("8b/fp8/prefill 16x4096/tok_s", 57435, 95000, 65000),
    Anchor("8b/bf16/invariant n=1/decode ratio", "x", None, 1.0, 1.3),
    Anchor("8b/bf16/invariant n=64/decode ratio", "x", None, 1.0, 1.3),
    Anchor("8b/bf16/interleave/itl ratio", "x", None, 1.0, 1.2),
    Anchor("8b/bf16/interleave/worst gap ms", "ms", None, None, 50),
    *(_specdec(n, acceptance) for n in (1, 8, 32, 64, 256) for acceptance in (0.8, 0.7, 0.6, 0.0)),
    _itl("0.6b/bf16/n=1", 2.25, 0.42, 1.3),
    _itl("0.6b/bf16/n=8", 2.23, 0.59, 1.5),
    _itl("0.6b/bf16/n=64", 3.58, 1.96, 2.6),
    _itl("0.6b/bf16/n=256", 9.19, 6.66, 8.0),
    _rate("0.6b/bf16/prefill 16x4096/tok_s", 305000, 530000, 330000),
    _rate("0.6b/bf16/train 4x2048/tok_s", 28589, 181000, 60000),
    Anchor("0.6b/bf16/train 4x2048/peak_gb", "GB", 5.3, None, None),
    _rate("0.6b/bf16/train 2x8192/tok_s", 44011, 116000, 60000),
    Anchor("0.6b/bf16/train 2x8192/peak_gb", "GB", 5.8, None, None),
    Anchor("0.6b/bf16/start/first_token_s", "s", 69, 3, 20),
)
BY_KEY = {anchor.key: anchor for anchor in ANCHORS}
