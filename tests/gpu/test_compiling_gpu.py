"""Kernels that are compiled together are not launched, and later not compiled again."""

from __future__ import annotations

import pytest
import torch

from harmonia.kernels.compiling import compile_together
from harmonia.kernels.norm import rms_norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")


def test_nothing_is_launched_and_nothing_is_left_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    sizes = 1168, 2192  # of no other test
    rows = [torch.randn(3, size, device=CUDA) for size in sizes]
    weights = [torch.randn(size, device=CUDA) for size in sizes]
    compiled, launched = [], []

    def run() -> list[torch.Tensor]:
        return [rms_norm(x_TE, weight_E, 1e-6) for x_TE, weight_E in zip(rows, weights, strict=True)]

    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda *_: launched.append(1))
    compile_together(run, CUDA)
    assert not launched
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **_: compiled.append(1))
    found = run()
    assert not compiled
    assert len(launched) == 2
    for y_TE, x_TE, weight_E in zip(found, rows, weights, strict=True):
        torch.testing.assert_close(y_TE, rms_norm(x_TE, weight_E, 1e-6, impl="eager"))


def test_what_fails_leaves_kernels_launchable() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        compile_together(fail, CUDA)
    x_TE, weight_E = torch.randn(3, 64, device=CUDA), torch.ones(64, device=CUDA)
    torch.testing.assert_close(rms_norm(x_TE, weight_E, 1e-6), rms_norm(x_TE, weight_E, 1e-6, impl="eager"))
