"""How compiled kernels are run."""

import subprocess
import sys

import pytest
import torch

from harmonia.kernels import native
from harmonia.kernels.native import kernel
from harmonia.kernels.native_code import exp, float32s, float64s, int64s, share


@kernel("qqqd")
def powers(arguments, thread, num_threads):
    source, target, size = int64s(arguments, 3)
    factor = float64s(arguments, 4)[3]
    first, stop = share(size, thread, num_threads)
    for place in range(first, stop):
        float32s(target, size)[place] = exp(float32s(source, size)[place]) * factor


def run_powers(x: torch.Tensor, num_threads: int, factor: float = 1.0) -> torch.Tensor:
    out = torch.full_like(x, -1)
    powers.run(num_threads, x.data_ptr(), out.data_ptr(), len(x), factor)
    return out


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_thread_does_its_share(num_threads):
    x = torch.linspace(-5, 5, 1001)
    torch.testing.assert_close(run_powers(x, num_threads, 2.0), 2 * x.exp())


def test_without_a_team_the_caller_does_it_all(monkeypatch):
    monkeypatch.setattr(native, "_team", lambda: None)
    x = torch.linspace(-5, 5, 100)
    torch.testing.assert_close(run_powers(x, 4), x.exp())


def test_exponential_is_accurate_and_bounded():
    x = torch.linspace(-86, 87, 100_001)
    exact = x.double().exp()
    error = ((run_powers(x, 1).double() - exact) / exact).abs()
    assert (error <= 2e-7 * (1 + x.double().abs() / 2)).all()
    far = run_powers(torch.tensor([-torch.inf, -1e30, 0.0, 1e30, torch.inf]), 1)
    assert far[0] < 1e-37 and far[1] < 1e-37 and far[2] == 1 and far[3] > 1e38 and far.isfinite().all()


def test_native_kernels_are_for_fp32_without_gradients():
    x = torch.zeros(2, requires_grad=True)
    assert not native.usable(x)
    with torch.no_grad():
        assert native.usable(x)
    assert not native.usable(torch.zeros(2, dtype=torch.bfloat16))
    assert not native.usable(torch.zeros(2, device="meta"))


def test_no_thread_is_woken_for_little():
    assert native.threads_for(10, 1000) == 1
    assert native.threads_for(10**9, 1000) == torch.get_num_threads()


def test_import_compiles_nothing():
    """A machine with a GPU should not wait for kernels that it never runs."""
    code = "import harmonia.kernels.attention, harmonia.kernels.sample\nfrom harmonia.kernels import native\n"
    code += "assert not any('_compiled' in vars(kernel) for kernel in native._KERNELS)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
