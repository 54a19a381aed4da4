"""`python -m harmonia.cli.demo`: the demonstration, from its first moment on."""

from __future__ import annotations

import signal


def main() -> None:
    """Run it. While everything is loaded, which takes a while, Ctrl-C ends it without a trace."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from harmonia.cli.demo_show import app  # only now, so that Ctrl-C may come before

    signal.signal(signal.SIGINT, signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()
