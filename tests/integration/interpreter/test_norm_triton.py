"""Norms: the GPU kernels, in Triton's interpreter, against the plain version."""

import itertools
import os

import pytest
import torch

from harmonia.kernels.norm import add_rms_norm, rms_norm
from tests.unit.kernels.gradients import assert_close, gradients, kept

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has these with a GPU")

EPS = 1e-6


def compare(run, *inputs):
    """Outputs and gradients of both versions."""
    for actual, expected in zip(
        gradients(lambda *x: run("triton", *x), *inputs), gradients(lambda *x: run("eager", *x), *inputs), strict=True
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize(
    ("rows", "size"), [*itertools.product((0, 1, 5, 300), (7, 64)), *itertools.product((0, 1, 11), (1100,))]
)
def test_outputs_and_gradients(rows, size, monkeypatch):
    monkeypatch.setattr("harmonia.kernels.norm_triton._SUMMING_PROGRAMS", 4)  # so that each takes several rows
    torch.manual_seed(rows + size)
    x_TE, residual_TE, weight_E = torch.randn(rows, size) * 3, torch.randn(rows, size), torch.randn(size)
    compare(lambda impl, x, w: rms_norm(x, w, EPS, impl), x_TE, weight_E)
    compare(lambda impl, x, r, w: add_rms_norm(x, r, w, EPS, impl), x_TE, residual_TE, weight_E)
    compare(lambda impl, x, r: add_rms_norm(x, r, weight_E, EPS, impl), x_TE, residual_TE)


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_outputs_may_be_unused(used):
    x_TE, residual_TE, weight_E = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32)
    compare(lambda impl, x, r: add_rms_norm(x, r, weight_E, EPS, impl)[used], x_TE, residual_TE)


def test_rows_may_be_apart_and_have_any_leading_dimensions():
    torch.manual_seed(0)
    wide_TE, weight_D = torch.randn(6, 96), torch.randn(32)
    compare(lambda impl, x, w: rms_norm(x[:, 32:64], w, EPS, impl), wide_TE, weight_D)
    compare(lambda impl, x, w: add_rms_norm(x[:, :32], x[:, 64:], w, EPS, impl), wide_TE, weight_D)
    compare(lambda impl, x, w: rms_norm(x.view(6, 3, 32)[:, 1:], w, EPS, impl), wide_TE, weight_D)
    compare(lambda impl, x, w: rms_norm(x[:, :32], w, EPS, impl).T, wide_TE, weight_D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    x_TE, residual_TE, weight_E = (torch.randn(*s, dtype=dtype) for s in ((9, 48), (9, 48), (48,)))
    out_TE, sum_TE = add_rms_norm(x_TE, residual_TE, weight_E, EPS, "triton")
    assert out_TE.dtype is sum_TE.dtype is dtype
    assert_close(sum_TE.float(), x_TE.float() + residual_TE.float(), 0.01)
    assert_close(out_TE.float(), rms_norm(sum_TE.float(), weight_E.float(), EPS, "eager"), 0.01)


def test_kept_is_the_same():
    x_TE, residual_TE, weight_E = torch.randn(4, 32), torch.randn(4, 32), torch.randn(32)
    found = [
        kept(lambda x, r, i=impl: add_rms_norm(x, r, weight_E, EPS, i), x_TE, residual_TE)
        for impl in ("triton", "eager")
    ]
    assert found[0] == found[1]
