"""`harmonia`: the command line."""

from __future__ import annotations

from harmonia.cli import plan, serve, worker
from harmonia.cli.app import app

__all__ = ["app", "main", "plan", "serve", "worker"]


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
