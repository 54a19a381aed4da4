"""How long a generation took."""

from __future__ import annotations

import msgspec

from harmonia.protocol.messages import Finished


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of one generation, each in milliseconds and in seconds."""

    kv_cache_allocated_ms: float
    """From its arrival at the worker until it got cache: the time in the queue."""
    ttft_from_creation_ms: float
    """From its arrival to its first token."""
    tbt_ms: float
    """Mean time between two tokens; 0 for a single one."""
    spec_dec_acceptance_rate: float | None = None
    """Share of proposed tokens that were right; None where nothing was proposed."""
    num_drafted_tokens: int = 0
    """Tokens that a draft proposed."""
    num_accepted_tokens: int = 0
    """Those of them that were right."""
    num_completion_tokens: int = 0
    """Tokens of the answer."""

    @classmethod
    def of(cls, finished: Finished) -> Timings:
        """The timings of a finished request."""
        usage = finished.usage
        ttft, total = finished.timings_ms.get("ttft", 0.0), finished.timings_ms.get("total", 0.0)
        return cls(
            kv_cache_allocated_ms=finished.timings_ms.get("queue", 0.0),
            ttft_from_creation_ms=ttft,
            tbt_ms=(total - ttft) / max(1, usage.completion_tokens - 1),
            spec_dec_acceptance_rate=usage.accepted_tokens / usage.drafted_tokens if usage.drafted_tokens else None,
            num_drafted_tokens=usage.drafted_tokens,
            num_accepted_tokens=usage.accepted_tokens,
            num_completion_tokens=usage.completion_tokens,
        )

    @property
    def ttft_from_cache_allocation_ms(self) -> float:
        """From the moment it got cache to its first token."""
        return self.ttft_from_creation_ms - self.kv_cache_allocated_ms

    @property
    def kv_cache_allocated_sec(self) -> float:
        """`kv_cache_allocated_ms` in seconds."""
        return self.kv_cache_allocated_ms / 1000

    @property
    def ttft_from_creation_sec(self) -> float:
        """`ttft_from_creation_ms` in seconds."""
        return self.ttft_from_creation_ms / 1000

    @property
    def ttft_from_cache_allocation_sec(self) -> float:
        """`ttft_from_cache_allocation_ms` in seconds."""
        return self.ttft_from_cache_allocation_ms / 1000

    @property
    def tbt_sec(self) -> float:
        """`tbt_ms` in seconds."""
        return self.tbt_ms / 1000
