"""`harmonia`: the command line."""

from __future__ import annotations

from harmonia.cli import (
    jobs,
    plan,
    run,
    serve,
    server_admin,
    server_entities,
    server_jobs,
    server_models,
    server_people,
    server_settings,
    up,
    worker,
)
from harmonia.cli.app import app

__all__ = [
    "app",
    "jobs",
    "main",
    "plan",
    "run",
    "serve",
    "server_admin",
    "server_entities",
    "server_jobs",
    "server_models",
    "server_people",
    "server_settings",
    "up",
    "worker",
]


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
