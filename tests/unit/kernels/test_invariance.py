"""What a CPU kernel computes for a token is the same bits in whichever batch it comes, on any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harmonia.kernels.activation import gated_activation
from harmonia.kernels.attention import LayerCache, PagedLayout, paged_attention
from harmonia.kernels.head import HeadChunk, head_logits
from harmonia.kernels.logprobs import log_sums, token_logprobs
from harmonia.kernels.lora import LoraRows, LoraSegment, add_lora
from harmonia.kernels.matmul import matmul
from harmonia.kernels.norm import add_rms_norm, rms_norm
from harmonia.kernels.packed_attention import packed_attention
from harmonia.kernels.rope import apply_rope
from harmonia.kernels.weight import DenseWeight, Int8Weight, Weight
from harmonia.train.scalar_head import ScalarHead

CPU = torch.device("cpu")
TOKENS = st.sampled_from((1, 2, 3, 4, 5, 8, 31, 33, 64, 65, 130, 200))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def require_same_rows(compute: Callable[[Tensor], Tensor], x_TK: Tensor, draw: st.DataObject) -> Tensor:
    """What rows give together they give alone, in smaller batches, in another order, on other threads."""
    torch.set_num_threads(1)
    together = compute(x_TK)
    assert together.isfinite().all()
    num_tokens = len(x_TK)
    start = draw.draw(st.integers(0, num_tokens - 1), label="start")
    stop = draw.draw(st.integers(start + 1, num_tokens), label="stop")
    torch.set_num_threads(draw.draw(st.sampled_from((1, 2, 3)), label="threads"))
    assert torch.equal(compute(x_TK[start:stop]), together[start:stop])
    assert torch.equal(compute(x_TK[start : start + 1]), together[start : start + 1])
    assert torch.equal(compute(x_TK.flip(0)), together.flip(0))
    return together


def weight_of(kind: str, num_out: int, num_in: int) -> Weight:
    values_NK = torch.randn(num_out, num_in)
    if kind == "int8":
        weight = Int8Weight.empty(num_out, num_in, CPU, invariant=True)
        weight.fill(0, values_NK)
        return weight
    dense = DenseWeight.empty(num_out, num_in, torch.float32, CPU, invariant=True)
    dense.fill(0, values_NK.bfloat16().float() if kind == "bf16" else values_NK)
    if kind == "trained":
        dense.require_grad()
    return dense


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("fp32", "bf16", "trained", "int8")), TOKENS, st.sampled_from((64, 192, 640, 1, 7, 50, 257)),
    st.sampled_from((1, 15, 16, 64, 65, 130, 576, 1100)), st.booleans(), st.data(),
)  # fmt: skip
def test_products(kind, num_tokens, num_out, num_in, has_bias, draw):
    torch.manual_seed(num_tokens)
    weight, x_TK = weight_of(kind, num_out, num_in), torch.randn(num_tokens, num_in)
    bias_N = torch.randn(num_out) if has_bias else None
    with torch.no_grad():
        y_TN = require_same_rows(lambda x_TK: matmul(x_TK, weight, bias_N), x_TK, draw)
        expected = matmul(x_TK, weight, bias_N, impl="eager")
    assert (y_TN - expected).abs().max() <= 1e-5 * num_in**0.5 + 1e-4


@settings(max_examples=30, deadline=None)
@given(TOKENS, st.sampled_from((16, 70, 576)), st.sampled_from((5, 48, 192, 200)), st.integers(1, 33), st.data())
def test_low_rank_products(num_tokens, num_in, num_out, rank, draw):
    torch.manual_seed(num_tokens)
    a_RK, b_RN, x_TK = torch.randn(rank + 2, num_in), torch.randn(rank + 2, num_out), torch.randn(num_tokens, num_in)
    rows = [LoraRows(1, rank, 0.7)]

    def compute(x_TK: Tensor) -> Tensor:
        y_TN = torch.ones(len(x_TK), num_out + 3)[:, 1:-2]  # a part of a wider row
        add_lora(y_TN, x_TK, a_RK, b_RN, rows, [LoraSegment(0, len(x_TK), 0)])
        return y_TN.contiguous()

    y_TN = require_same_rows(compute, x_TK, draw)
    expected = 1 + 0.7 * (x_TK.double() @ a_RK[1:-1].double().T) @ b_RN[1:-1].double()
    assert (y_TN - expected).abs().max() <= 1e-4 * num_in**0.5


@settings(max_examples=40, deadline=None)
@given(
    TOKENS, st.sampled_from((1, 15, 48, 64, 112, 300, 1536, 5000)), st.sampled_from(("silu", "gelu_tanh")), st.data()
)
def test_gated_activations(num_tokens, size, activation, draw):
    torch.manual_seed(num_tokens)
    require_same_rows(lambda x_TK: gated_activation(x_TK, activation), torch.randn(num_tokens, 2 * size) * 4, draw)


@settings(max_examples=30, deadline=None)
@given(TOKENS, st.sampled_from((16, 64, 100, 576, 2048)), st.data())
def test_norms(num_tokens, size, draw):
    torch.manual_seed(num_tokens)
    weight_E, x_TE = torch.randn(size), torch.randn(num_tokens, 2 * size)
    require_same_rows(lambda x_TE: rms_norm(x_TE[:, :size], weight_E, 1e-6), x_TE, draw)
    require_same_rows(
        lambda x_TE: torch.cat(add_rms_norm(x_TE[:, :size], x_TE[:, size:], weight_E, 1e-6), dim=1), x_TE, draw
    )


@settings(max_examples=20, deadline=None)
@given(TOKENS, st.sampled_from((1, 3, 9)), st.sampled_from((16, 64, 128)), st.data())
def test_rotations(num_tokens, heads, size, draw):
    torch.manual_seed(num_tokens)
    table_CD = torch.randn(300, size)
    x_TF = torch.cat((torch.randn(num_tokens, heads * size), torch.randint(300, (num_tokens, 1)).float()), dim=1)

    def compute(x_TF: Tensor) -> Tensor:
        x_THD = x_TF[:, :-1].unflatten(1, (heads, size))
        return apply_rope(x_THD, table_CD, x_TF[:, -1].long())

    require_same_rows(compute, x_TF, draw)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from((1, 2, 3, 17, 64, 100)),
    st.sampled_from((64, 96, 1000, 5120)),
    st.sampled_from((None, 5.0)),
    st.data(),
)
def test_the_head_and_log_probabilities(num_tokens, vocab, softcap, draw):
    torch.manual_seed(num_tokens)
    head, hidden_TE = weight_of("bf16", vocab, 64), torch.randn(num_tokens, 65)
    hidden_TE[:, -1] = torch.randint(vocab, (num_tokens,))

    def served(hidden_TE: Tensor) -> Tensor:
        logits_TV, ids_T = head_logits(hidden_TE[:, :-1].contiguous(), head, softcap), hidden_TE[:, -1].long()
        return torch.stack((token_logprobs(logits_TV, ids_T), log_sums(logits_TV)), dim=1)

    together = require_same_rows(served, hidden_TE, draw)
    trained = HeadChunk.forward(hidden_TE[:, :-1].contiguous(), head, hidden_TE[:, -1].long(), softcap)
    assert torch.equal(trained.logprobs_C, together[:, 0])


@settings(max_examples=10, deadline=None)
@given(TOKENS, st.sampled_from((16, 64, 100, 2048)), st.data())
def test_scalar_heads(num_tokens, size, draw):
    torch.manual_seed(num_tokens)
    head = ScalarHead(torch.randn(size))
    require_same_rows(head.scores, torch.randn(num_tokens, size), draw)


LENGTHS = st.lists(st.sampled_from((1, 2, 5, 16, 17, 63, 64, 65, 100, 200)), min_size=1, max_size=4)
HEADS = st.sampled_from(((1, 1), (3, 1), (9, 3), (4, 4), (14, 2), (16, 1)))


def chunks_of(length: int, draw: st.DataObject) -> list[int]:
    """Tokens of each step that a sequence takes to be read: a few chunks, then single tokens."""
    sizes = draw.draw(st.lists(st.integers(1, 90), max_size=4), label="chunks")
    chunks = []
    for size in sizes:
        if sum(chunks) + size < length:
            chunks.append(size)
    return [*chunks, *[1] * min(3, length - sum(chunks) - 1), length - sum(chunks) - min(3, length - sum(chunks) - 1)]


@settings(max_examples=60, deadline=None)
@given(
    LENGTHS, HEADS, st.sampled_from((16, 64, 80, 128)), st.sampled_from((4, 16, 20)),
    st.sampled_from((0, 0, 1, 7, 64, 100)), st.data(),
)  # fmt: skip
def test_attention_is_the_same_decoded_in_chunks_and_packed(lengths, heads, size, block_size, window, draw):
    torch.manual_seed(sum(lengths))
    num_tokens, (num_heads, kv_heads) = sum(lengths), heads
    qkv_TXD = torch.randn(num_tokens, num_heads + 2 * kv_heads, size) * 2
    q_THD, k_TGD, v_TGD = qkv_TXD.split((num_heads, kv_heads, kv_heads), dim=1)
    torch.set_num_threads(draw.draw(st.sampled_from((1, 2, 3)), label="threads of packed"))
    packed_THD = packed_attention(q_THD, k_TGD, v_TGD, tuple(lengths), size**-0.5, window)

    counts = [-(-length // block_size) for length in lengths]
    blocks = torch.randperm(sum(counts)).int().split(counts)
    cache = LayerCache(*torch.full((2, sum(counts), block_size, kv_heads, size), torch.nan))
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    for own, start, length in zip(blocks, starts, lengths, strict=True):
        positions = torch.arange(length)
        slots = own[positions // block_size] * block_size + positions % block_size
        cache.k_NPGD.flatten(0, 1)[slots.long()] = k_TGD[start : start + length]
        cache.v_NPGD.flatten(0, 1)[slots.long()] = v_TGD[start : start + length]

    waiting, read = [chunks_of(length, draw) for length in lengths], [0] * len(lengths)
    served_THD = torch.full_like(packed_THD, torch.nan)
    while any(waiting):
        rows = [row for row in range(len(lengths)) if waiting[row]]
        rows = draw.draw(st.permutations(rows), label="step")[: draw.draw(st.integers(1, len(rows)), label="size")]
        query_lens = tuple(waiting[row].pop(0) for row in rows)
        tokens = [
            torch.arange(starts[row] + read[row], starts[row] + read[row] + size)
            for row, size in zip(rows, query_lens, strict=True)
        ]
        for row, size_of_chunk in zip(rows, query_lens, strict=True):
            read[row] += size_of_chunk
        contexts = tuple(read[row] for row in rows)
        layout = PagedLayout(
            slots_T=torch.zeros(0, dtype=torch.int64),
            blocks_B=torch.cat([blocks[row] for row in rows]),
            block_starts_S=torch.tensor([0, *(counts[row] for row in rows[:-1])]).cumsum(0).int(),
            context_lens_S=torch.tensor(contexts, dtype=torch.int32),
            query_starts_S1=torch.tensor([0, *query_lens]).cumsum(0).int(),
            query_lens=query_lens,
            context_lens=contexts,
            num_decodes=0,
            invariant=True,
        )
        torch.set_num_threads(draw.draw(st.sampled_from((1, 2, 3)), label="threads"))
        batch = torch.cat(tokens)
        served_THD[batch] = paged_attention(q_THD[batch], cache, layout, size**-0.5, window)
    assert torch.equal(served_THD, packed_THD)
