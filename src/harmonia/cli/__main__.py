"""`harmonia` and `python -m harmonia.cli`: the command line, from its first moment on."""

from __future__ import annotations

from harmonia.cli.loading import quiet_interrupts


def main() -> None:
    """Run the command that the arguments name."""
    with quiet_interrupts():
        from harmonia.cli.main import app
    app()


if __name__ == "__main__":
    main()
