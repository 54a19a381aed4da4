"""Token embeddings in training, alone and tied to the head."""

import pytest
import torch
from torch.nn import functional as F

from harmonia.kernels.head import HeadChunk
from harmonia.layers.embedding import Embedding
from harmonia.layers.linear import WeightFormat

FP32 = WeightFormat(torch.float32, torch.device("cpu"))
IDS = torch.tensor([3, 0, 90, 3, 3])


def filled(vocab_size: int = 128, *, is_head: bool = False, scale: float = 1.0, fmt: WeightFormat = FP32) -> Embedding:
    torch.manual_seed(0)
    embedding = Embedding.create(vocab_size, 48, fmt, scale=scale, is_head=is_head)
    next(embedding.parameters("")).fill(0, torch.randn(vocab_size, 48))
    embedding.pack()
    return embedding


def in_rows(embedding: Embedding, panels: torch.Tensor) -> torch.Tensor:
    return panels if embedding.weight.panels_XKP is None else panels.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("is_head", [False, True])
@pytest.mark.parametrize("scale", [1.0, 6.5])
def test_rows_that_are_read_get_gradients(is_head, scale):
    embedding = filled(is_head=is_head, scale=scale)
    table_VE, dx_TE = embedding.weight.dense().clone().requires_grad_(), torch.randn(5, 48)
    leaf = embedding.weight.require_grad()
    embedding(IDS).backward(dx_TE)
    (F.embedding(IDS, table_VE) * scale).backward(dx_TE)
    torch.testing.assert_close(in_rows(embedding, leaf.grad), table_VE.grad)


@pytest.mark.parametrize("vocab_size", [128, 100])
def test_both_uses_of_a_tied_table_add_up(vocab_size):
    embedding, targets = filled(vocab_size, is_head=True), torch.tensor([1, 2, 3, 4, 5])
    table_VE = embedding.weight.dense().clone().requires_grad_()
    leaf = embedding.weight.require_grad()
    x_TE = embedding(IDS)
    chunk = HeadChunk.forward(x_TE.detach(), embedding.weight, targets)
    x_TE.backward(chunk.backward(torch.ones(5)))
    expected_TE = F.embedding(IDS, table_VE)
    F.linear(expected_TE, table_VE).log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    torch.testing.assert_close(in_rows(embedding, leaf.grad), table_VE.grad, rtol=1e-5, atol=1e-4)


def test_a_frozen_table_gives_plain_rows():
    assert not filled()(IDS).requires_grad
    assert not filled(fmt=WeightFormat(torch.float32, torch.device("cpu"), int8=True))(IDS).requires_grad


def test_bf16_tables_get_fp32_gradients():
    embedding = filled(fmt=WeightFormat(torch.bfloat16, torch.device("cpu")))
    leaf = embedding.weight.require_grad()
    embedding(IDS).sum().backward()
    assert leaf.grad.dtype is torch.float32
    assert leaf.grad[3].tolist() == [3.0] * 48


def test_shapes_without_memory():
    embedding = Embedding.create(96, 16, WeightFormat(torch.bfloat16, torch.device("meta")))
    leaf = embedding.weight.require_grad()
    embedding(torch.empty(5, dtype=torch.int64, device="meta")).sum().backward()
    assert leaf.grad.shape == (96, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_table_on_a_gpu():
    embedding = filled(fmt=WeightFormat(torch.bfloat16, torch.device("cuda")))
    leaf = embedding.weight.require_grad()
    embedding(IDS.cuda()).sum().backward()
    assert leaf.grad[3].tolist() == [3.0] * 48
