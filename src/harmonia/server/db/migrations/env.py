"""What Alembic runs for each of its commands, on the connection that `harmonia.server.db.migrate` gives it."""

from __future__ import annotations

from alembic import context

from harmonia.server.db.tables import METADATA


def run() -> None:
    """Migrate, or compare, inside the transaction of the connection."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=METADATA,
        render_as_batch=True,  # SQLite changes a table by copying it
    )
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # the name under which Alembic loads this file
    run()
