"""`python -m harmonia.cli.demo`: the demonstration, from its first moment on."""

from __future__ import annotations

from harmonia.cli.loading import quiet_interrupts


def main() -> None:
    """Run it."""
    with quiet_interrupts():
        from harmonia.cli.demo_show import app
    app()


if __name__ == "__main__":
    main()
