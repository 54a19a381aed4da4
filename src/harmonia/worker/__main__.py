"""`python -m harmonia.worker --config-json '{...}'`: a worker process."""

from __future__ import annotations

import argparse
import socket
import sys

import msgspec

from harmonia.config import WorkerConfig
from harmonia.worker.serve import run


def main() -> int:
    """Parse the configuration and serve."""
    parser = argparse.ArgumentParser(prog="python -m harmonia.worker", description="Run one worker process.")
    parser.add_argument("--config-json", required=True, help="a WorkerConfig as JSON")
    parser.add_argument("--pulse-fd", type=int, help="a socket over which the parent asks whether it is alive")
    given = parser.parse_args()
    try:
        config = msgspec.json.decode(given.config_json, type=WorkerConfig)
    except msgspec.DecodeError as error:
        parser.error(f"--config-json: {error}")
    if given.pulse_fd is None:
        return run(config)
    with socket.socket(fileno=given.pulse_fd) as pulse:
        return run(config, pulse)


if __name__ == "__main__":
    sys.exit(main())
