"""Proposals without a model: what followed the last tokens when they stood there before.

Prompt lookup decoding (Saxena, 2023): summaries, edits and code repeat what stands in the prompt.
"""

from __future__ import annotations

import numpy as np

_LONGEST, _SHORTEST = 4, 2
"""Tokens that must have stood there before; more tell more, and fewer are found more often."""


def look_up(tokens: np.ndarray, num_wanted: int) -> np.ndarray:
    """Up to so many tokens that may come next, after the latest place where the longest end of `tokens` stood."""
    last = len(tokens) - 1
    ends = np.flatnonzero(tokens[:last] == tokens[last]) if last > 0 else np.empty(0, np.int64)
    found = ends[:0]
    for length in range(_SHORTEST, _LONGEST + 1):
        ends = ends[ends >= length - 1]
        ends = ends[tokens[ends - (length - 1)] == tokens[last - (length - 1)]] if last >= length - 1 else ends[:0]
        if not len(ends):
            break
        found = ends
    if not len(found):
        return tokens[:0]
    start = int(found[-1]) + 1
    return tokens[start : start + num_wanted]
