"""What `/metrics` tells of the database: how often it was used, how long, and how often it did not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoneFreeError

from harmonia import tracing
from harmonia.errors import UnavailableError
from harmonia.log import get_logger

log = get_logger(__name__)

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SQLITE_BUSY = 5


class Usage:
    """Counts, under the seed system's names, which dashboards already use."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._total = Counter("concorde_db_connections", "Connections taken from the pool", registry=self.registry)
        self._failed = Counter(
            "concorde_db_connections_failed", "Those that the database did not give, or broke", registry=self.registry
        )
        self._seconds = Histogram(
            "concorde_db_connections_duration_seconds",
            "Time for which a connection was held",
            ("db_query_type",),
            registry=self.registry,
            buckets=_BUCKETS_S,
        )

    @contextmanager
    def counted(self, query_type: str) -> Iterator[None]:
        """Count what happens inside; a database that does not answer becomes `UnavailableError`.

        query_type: `read`, `write`, or `glance` for a query that stands alone.
        """
        started = time.perf_counter()
        self._total.inc()
        try:
            with tracing.span(f"database {query_type}"):
                yield
        except (DBAPIError, NoneFreeError) as error:
            if not _is_outage(error):
                raise
            self.failed(error)
            raise unavailable() from error
        finally:
            self._seconds.labels(query_type).observe(time.perf_counter() - started)

    def failed(self, error: Exception) -> None:
        """Count a connection that could not be had."""
        self._failed.inc()
        # The exception of the driver has no parameters, which may be secrets.
        log.error("the database does not answer: %s", getattr(error, "orig", None) or error)


def unavailable() -> UnavailableError:
    """What callers hear of it."""
    return UnavailableError("the database does not answer; send the request again in a moment")


def _is_outage(error: DBAPIError | NoneFreeError) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    return error.connection_invalidated or getattr(error.orig, "sqlite_errorcode", None) == _SQLITE_BUSY
