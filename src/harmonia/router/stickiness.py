"""Which replica a session talked to last: its cache blocks are there."""

from __future__ import annotations

from collections import OrderedDict


class Stickiness:
    """Remembers the replica of the most recent sessions."""

    def __init__(self, max_sessions: int = 100_000) -> None:
        self._max_sessions = max_sessions
        self._replicas: OrderedDict[tuple[str, str], str] = OrderedDict()

    def recall(self, session_id: str, model: str) -> str | None:
        """The replica that answered this session for this model last."""
        return self._replicas.get((session_id, model))

    def remember(self, session_id: str, model: str, replica: str) -> None:
        """Note that a replica answers this session; the session unused for longest is forgotten."""
        self._replicas[session_id, model] = replica
        self._replicas.move_to_end((session_id, model))
        if len(self._replicas) > self._max_sessions:
            self._replicas.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Drop a session for every model."""
        for entry in [entry for entry in self._replicas if entry[0] == session_id]:
            del self._replicas[entry]
