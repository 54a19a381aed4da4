"""Workers that are tried one after the other, as long as whoever asked has seen nothing of an answer."""

from __future__ import annotations

from harmonia.errors import HarmoniaError, OverloadedError, UnavailableError, UnknownModelError, WorkerLostError
from harmonia.log import get_logger
from harmonia.router.router import Replica, Router

log = get_logger(__name__)

ELSEWHERE = (WorkerLostError, OverloadedError)
"""What another worker may do better: the first died, or its queue is full."""


class Attempts:
    """The tries of one request. `next` picks a worker that has not failed yet; `failed` says that one has."""

    def __init__(self, router: Router, model: str, session_id: str | None = None) -> None:
        self._router, self._model, self._session_id = router, model, session_id
        self._errors: dict[str, HarmoniaError] = {}

    def next(self) -> Replica:
        """Raises the error of the last worker when there is no other."""
        try:
            return self._router.pick(self._model, self._session_id, self._errors)
        except (UnavailableError, UnknownModelError):
            if self._errors:
                raise list(self._errors.values())[-1] from None
            raise

    def failed(self, replica: Replica, error: HarmoniaError) -> None:
        """Note that a worker did not answer."""
        log.warning("worker %s did not answer a request: %s", replica.replica, error)
        self._errors[replica.replica] = error
