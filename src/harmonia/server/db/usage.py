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
_SQLITE_FAILS = {8: "is read-only", 10: "cannot reach its disk", 13: "has a full disk", 14: "cannot open its file"}
_POSTGRES_FAILS = {"25006": "is read-only", "53100": "has a full disk", "53200": "has no memory left"}


class Usage:
    """Counts, under names that dashboards use already."""

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
            why = _outage(error)
            if why is None:
                raise
            self.failed(error)
            raise unavailable(why) from error
        finally:
            self._seconds.labels(query_type).observe(time.perf_counter() - started)

    def failed(self, error: Exception) -> None:
        """Count a connection that could not be had."""
        self._failed.inc()
        # The exception of the driver has no parameters, which may be secrets.
        log.error("the database fails: %s", getattr(error, "orig", None) or error)


def unavailable(why: str = "does not answer") -> UnavailableError:
    """What callers hear of it."""
    return UnavailableError(f"the database {why}; send the request again in a moment")


def _outage(error: DBAPIError | NoneFreeError) -> str | None:
    """What is wrong with the database; None if the query is at fault."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return "does not answer"
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the rest says more than is asked for
    if code == _SQLITE_BUSY:
        return "does not answer"
    return _SQLITE_FAILS.get(code) or _POSTGRES_FAILS.get(str(getattr(error.orig, "sqlstate", "")))
