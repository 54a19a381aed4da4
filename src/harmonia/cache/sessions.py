"""Sessions: a conversation's claim on the cache blocks of its latest turn.

A session owns no memory. It only makes its blocks the last to be evicted; a session whose blocks are gone prefills
again. A newer turn replaces the claim of the one before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from harmonia.cache.pool import BlockPool


class SessionTable:
    """The latest chain of each session, least recently used forgotten first."""

    def __init__(self, pool: BlockPool, max_sessions: int) -> None:
        self._pool = pool
        self._max_sessions = max_sessions
        self._chains: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chains)

    def update(self, session_id: str, chain: Sequence[bytes]) -> None:
        """Claim the blocks of a session's newest turn instead of those before."""
        new = tuple(chain)
        self._pool.keep(new)
        self.close(session_id)
        self._chains[session_id] = new
        while len(self._chains) > self._max_sessions:
            self.close(next(iter(self._chains)))

    def close(self, session_id: str) -> None:
        """Drop a session's claim; unknown sessions are fine."""
        old = self._chains.pop(session_id, None)
        if old is not None:
            self._pool.unkeep(old)
