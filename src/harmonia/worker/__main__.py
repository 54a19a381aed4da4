"""`python -m harmonia.worker --config-json '{...}'`: a worker process."""

from __future__ import annotations

import argparse
import sys

import msgspec

from harmonia.config import WorkerConfig
from harmonia.worker.serve import run


def main() -> int:
    """Parse the configuration and serve."""
    parser = argparse.ArgumentParser(prog="python -m harmonia.worker", description="Run one worker process.")
    parser.add_argument("--config-json", required=True, help="a WorkerConfig as JSON")
    text = parser.parse_args().config_json
    try:
        config = msgspec.json.decode(text, type=WorkerConfig)
    except msgspec.DecodeError as error:
        parser.error(f"--config-json: {error}")
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
