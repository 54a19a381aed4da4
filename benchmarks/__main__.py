"""`python -m benchmarks`: see `benchmarks/README.md`."""

import signal
import sys
from types import FrameType

from benchmarks.cli import main


def leave(number: int, _frame: FrameType | None) -> None:
    """Unwind, so that no engine, and above all no paused one, is left behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    sys.exit(main(sys.argv[1:]))
