"""Packed attention on a GPU: the kernels that torch brings and our own against the plain version in full precision."""

from __future__ import annotations

import pytest
import torch

from harmonia.kernels.packed_attention import packed_attention
from harmonia.kernels.packed_attention_cuda import cudnn_usable
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


@pytest.mark.parametrize("lengths", [(1024, 1024), (512,), (1000, 1024, 990), (1500,)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("size", [64, 128])
def test_sequences_of_like_lengths_take_cudnn(lengths, heads, size):
    tokens, sizes = sum(lengths), (heads[0], heads[1], heads[1])
    kinds = {"device": "cuda", "dtype": torch.bfloat16}
    qkv_TXD = torch.randn(tokens, heads[0] + 2 * heads[1], size, **kinds, requires_grad=True)
    d_out_THD = torch.randn(tokens, heads[0], size, **kinds)
    if not cudnn_usable(lengths, 0, qkv_TXD, qkv_TXD, qkv_TXD):
        pytest.skip("cuDNN is taken on Hopper only")
    out_THD = packed_attention(*qkv_TXD.split(sizes, dim=1), lengths, size**-0.5, 0)
    exact_TXD = qkv_TXD.detach().float().requires_grad_()
    exact_THD = packed_attention(*exact_TXD.split(sizes, dim=1), lengths, size**-0.5, 0, "eager")
    assert_close(out_THD.float(), exact_THD, tolerance=0.01)
    (d_qkv_TXD,) = torch.autograd.grad(out_THD, qkv_TXD, d_out_THD)
    (exact_TXD,) = torch.autograd.grad(exact_THD, exact_TXD, d_out_THD.float())
    assert_close(d_qkv_TXD.float(), exact_TXD, tolerance=0.01)


@pytest.mark.parametrize("lengths", [(1024, 1024), (1, 130, 64, 300)])
@pytest.mark.parametrize("window", [0, 50])
def test_the_backward_passes_of_torch_follow_our_forward(lengths, window):
    tokens, sizes = sum(lengths), (6, 2, 2)
    qkv_TXD = torch.randn(tokens, 10, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    d_out_THD = torch.randn(tokens, 6, 64, device="cuda", dtype=torch.bfloat16)
    out_THD = packed_attention(*qkv_TXD.split(sizes, dim=1), lengths, 0.125, window, invariant=True)
    exact_TXD = qkv_TXD.detach().float().requires_grad_()
    exact_THD = packed_attention(*exact_TXD.split(sizes, dim=1), lengths, 0.125, window, "eager")
    assert_close(out_THD.float(), exact_THD, tolerance=0.01)
    (d_qkv_TXD,) = torch.autograd.grad(out_THD, qkv_TXD, d_out_THD)
    (exact_TXD,) = torch.autograd.grad(exact_THD, exact_TXD, d_out_THD.float())
    assert_close(d_qkv_TXD.float(), exact_TXD, tolerance=0.01)
