"""Chunks of the head against log-softmax under torch's own gradients."""

import pytest
import torch
from torch.nn import functional as F

from harmonia.kernels.head import HeadChunk, head_rows
from harmonia.kernels.logprobs import token_logprobs
from harmonia.kernels.matmul import DenseWeight, Int8Weight, Weight, matmul

CPU = torch.device("cpu")
NUM_FEATURES = 48
VOCABS = (96, 128, 2112)
FORMS = ("fp32", "bf16 values", "int8")


def made(form: str, vocab_size: int) -> tuple[Weight, torch.Tensor]:
    """A head, and the same as plain rows that torch trains."""
    torch.manual_seed(0)
    values_VE = torch.randn(vocab_size, NUM_FEATURES) * 0.3
    if form == "int8":
        head: Weight = Int8Weight.empty(vocab_size, NUM_FEATURES, CPU)
        head.fill(0, values_VE)
        return head, (head.weight_NK.float() * head.scale_N[:, None]).requires_grad_()
    head = DenseWeight.empty(vocab_size, NUM_FEATURES, torch.float32, CPU)
    head.fill(0, values_VE.bfloat16() if form == "bf16 values" else values_VE)
    head.pack()
    return head, head.dense().clone().requires_grad_()


def expected_of(hidden_CE, weight_VE, targets_C, softcap):
    logits_CV = F.linear(hidden_CE, weight_VE)
    if softcap is not None:
        logits_CV = torch.tanh(logits_CV / softcap) * softcap
    logprobs_CV = logits_CV.log_softmax(-1)
    entropy_C = -(logprobs_CV.exp() * logprobs_CV).sum(-1)
    return logprobs_CV.gather(1, targets_C[:, None])[:, 0], entropy_C


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        assert (actual - expected).detach().abs().max() <= tolerance * max(1e-3, float(expected.detach().abs().max()))


def batch(num_rows: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden_CE = torch.randn(num_rows, NUM_FEATURES).requires_grad_()
    return hidden_CE, torch.randint(vocab_size, (num_rows,)), torch.randn(num_rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocab_size", VOCABS)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 170])
def test_a_frozen_head(form, vocab_size, softcap, num_rows):
    head, weight_VE = made(form, vocab_size)
    hidden_CE, targets_C, dlogprobs_C = batch(num_rows, vocab_size)
    chunk = HeadChunk.forward(hidden_CE.detach(), head, targets_C, softcap)
    logprobs_C, entropy_C = expected_of(hidden_CE, weight_VE, targets_C, softcap)
    assert_close(chunk.logprobs_C, logprobs_C)
    assert_close(chunk.entropy_C, entropy_C)
    logprobs_C.backward(dlogprobs_C)
    assert_close(chunk.backward(dlogprobs_C), hidden_CE.grad)


@pytest.mark.parametrize("form", ["fp32", "bf16 values"])
@pytest.mark.parametrize("vocab_size", VOCABS)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_trained_head_gathers_the_gradients_of_all_chunks(form, vocab_size, softcap, monkeypatch):
    monkeypatch.setattr("harmonia.kernels.matmul_grad._EAGER_PART_BYTES", 1 << 16)
    head, weight_VE = made(form, vocab_size)
    leaf = head.require_grad()
    for num_rows in (0, 5, 170):
        hidden_CE, targets_C, dlogprobs_C = batch(num_rows, vocab_size)
        HeadChunk.forward(hidden_CE.detach(), head, targets_C, softcap).backward(dlogprobs_C)
        expected_of(hidden_CE, weight_VE, targets_C, softcap)[0].backward(dlogprobs_C)
    assert_close(leaf.grad if head.panels_XKP is None else leaf.grad.transpose(1, 2).flatten(0, 1), weight_VE.grad)


def test_the_sampler_defines_the_same_log_probability():
    head, _ = made("fp32", 2112)
    hidden_CE, targets_C, _ = batch(33, 2112)
    hidden_CE = hidden_CE.detach()
    sampled_C = torch.cat(
        [
            token_logprobs(matmul(row_E[None], head), target[None])
            for row_E, target in zip(hidden_CE, targets_C, strict=True)
        ]
    )
    assert (HeadChunk.forward(hidden_CE, head, targets_C).logprobs_C - sampled_C).abs().max() < 1e-5


def test_extreme_logits_stay_finite():
    head = DenseWeight(torch.tensor([[1e4], [-1e4], [0.0]]))
    chunk = HeadChunk.forward(torch.tensor([[3.0], [-3.0]]), head, torch.tensor([0, 0]))
    assert chunk.logprobs_C.tolist() == [0.0, -6e4]
    assert chunk.entropy_C.tolist() == [0.0, 0.0]
    assert chunk.backward(torch.ones(2))[:, 0].tolist() == pytest.approx([0.0, 2e4])


def test_a_chunk_goes_backward_once():
    head, _ = made("fp32", 96)
    hidden_CE, targets_C, dlogprobs_C = batch(3, 96)
    chunk = HeadChunk.forward(hidden_CE.detach(), head, targets_C)
    chunk.backward(dlogprobs_C)
    with pytest.raises(AssertionError):
        chunk.backward(dlogprobs_C)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bf16_hidden_states(device):
    head = DenseWeight(torch.randn(96, 16).bfloat16().to(device))
    leaf = head.require_grad()
    hidden_CE, targets_C = torch.randn(5, 16).bfloat16().to(device), torch.arange(5, device=device)
    chunk = HeadChunk.forward(hidden_CE, head, targets_C, softcap=4.0)
    dhidden_CE = chunk.backward(torch.ones(5, device=device))
    assert (chunk.logprobs_C.dtype, dhidden_CE.dtype, leaf.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert dhidden_CE.shape == (5, 16)


@pytest.mark.parametrize("vocab_size", [100, 49152, 262144, 10**9])
def test_chunks_are_bounded(vocab_size):
    rows = head_rows(vocab_size, 64, CPU)
    assert rows == 16 or rows * vocab_size * 4 <= 64 << 20


@pytest.mark.parametrize(("num_features", "vocab_size", "rows"), [(4096, 151_936, 1024), (1024, 151_936, 2048)])
def test_chunks_on_a_gpu_keep_it_busy(num_features, vocab_size, rows):
    assert head_rows(vocab_size, num_features, torch.device("cuda")) == rows
    assert head_rows(10**9, num_features, torch.device("cuda")) == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_chunk_on_a_gpu(dtype, tolerance, softcap):
    torch.manual_seed(0)
    head = DenseWeight(torch.randn(300, NUM_FEATURES).mul(0.3).to("cuda", dtype))
    weight_VE, leaf = head.weight_NK.float().requires_grad_(), head.require_grad()
    hidden_CE, targets_C, dlogprobs_C = (tensor.detach().cuda() for tensor in batch(40, 300))
    theirs = hidden_CE.to(dtype).float().requires_grad_()
    chunk = HeadChunk.forward(hidden_CE.to(dtype), head, targets_C, softcap)
    logprobs_C, entropy_C = expected_of(theirs, weight_VE, targets_C, softcap)
    assert_close(chunk.logprobs_C, logprobs_C, tolerance)
    assert_close(chunk.entropy_C, entropy_C, tolerance)
    logprobs_C.backward(dlogprobs_C)
    assert_close(chunk.backward(dlogprobs_C).float(), theirs.grad, tolerance)
    assert_close(leaf.grad, weight_VE.grad, tolerance)
