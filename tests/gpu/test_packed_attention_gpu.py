"""Packed attention on a GPU: torch's flash kernel against the plain version in full precision."""

from __future__ import annotations

import pytest
import torch

from harmonia.kernels.packed_attention import packed_attention
from tests.unit.kernels.gradients import assert_close

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("window", [0, 1, 50])
def test_half_precision_takes_the_flash_kernel(heads, size, window):
    torch.manual_seed(0)
    lengths, sizes = (1, 130, 64, 300), (heads[0], heads[1], heads[1])
    qkv_TXD = torch.randn(495, heads[0] + 2 * heads[1], size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    d_out_THD = torch.randn(495, heads[0], size, device="cuda", dtype=torch.bfloat16)
    out_THD = packed_attention(*qkv_TXD.split(sizes, dim=1), lengths, size**-0.5, window)
    exact_TXD = qkv_TXD.detach().float().requires_grad_()
    exact_THD = packed_attention(*exact_TXD.split(sizes, dim=1), lengths, size**-0.5, window, "eager")
    assert_close(out_THD.float(), exact_THD, tolerance=0.01)
    (d_qkv_TXD,) = torch.autograd.grad(out_THD, qkv_TXD, d_out_THD)
    (exact_TXD,) = torch.autograd.grad(exact_THD, exact_TXD, d_out_THD.float())
    assert_close(d_qkv_TXD.float(), exact_TXD, tolerance=0.01)
