"""How much training may run beside serving.

While something is served, slices of training take at most `share` of the time that serving steps take, so the mean time
between tokens rises by that share. What serving leaves over is saved up as credit, for at most one slice.
"""

from __future__ import annotations

_FORGET = 0.8
"""Weight of the past in the estimate of a slice's duration."""


class Pacer:
    """Times are in seconds."""

    def __init__(self, share: float) -> None:
        """share: 0.2 lets the mean inter-token latency rise 1.2 times."""
        self._share = share
        self._credit_s = 0.0
        self._slice_s = 0.0

    @property
    def may_train(self) -> bool:
        """Serving has left enough time for one more slice."""
        return self._credit_s >= self._slice_s

    def served(self, seconds: float) -> None:
        """A serving step took so long."""
        self._credit_s = min(self._credit_s + self._share * seconds, max(self._slice_s, self._share * seconds))

    def trained(self, seconds: float, *, beside_serving: bool) -> None:
        """A slice took so long; what ran while nothing was served costs no credit."""
        self._slice_s = seconds if self._slice_s == 0 else _FORGET * self._slice_s + (1 - _FORGET) * seconds
        if beside_serving:
            self._credit_s -= seconds
