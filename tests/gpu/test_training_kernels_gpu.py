"""What training runs on a GPU: kernels at real sizes; micro-batches that keep less, wait for nothing, and fit."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from harmonia.kernels.again import keeping_less
from harmonia.kernels.logprobs import entropies, log_sums, logits_to_gradient, summed_logprobs
from harmonia.kernels.matmul_grad import add_weight_grad
from harmonia.kernels.optimizer import AdamState, AdamStep, adamw
from harmonia.kernels.weight import DenseWeight
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.linear import WeightFormat
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from harmonia.protocol.losses import Dpo, LanguageModelling
from harmonia.train.footprint import Trained, footprint
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.samples import Sample
from harmonia.train.weights import TrainedAdapter, TrainedBackbone, random_adapter
from tests.gpu.waiting import no_waits
from tests.unit.engine.tiny import MODEL

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

CUDA = torch.device("cuda")
VOCAB = 151_936
LENGTHS = (700, 3, 900, 445)
TOKENS = sum(LENGTHS)
SIZES = msgspec.structs.replace(
    MODEL,
    num_layers=3,
    hidden_size=512,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=5000,
    max_seq_len=4096,
    windows=(0,) * 3,
    attention_scale=0.125,
)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Against the largest value, as rounding is."""
    scale = float(expected.float().abs().max())
    assert float((actual.float() - expected.float()).abs().max()) <= tolerance * max(scale, 1e-3)


# ------------------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("num_rows", [1, 300])
@pytest.mark.parametrize("size", [VOCAB, 4097, 32_000])
def test_log_probabilities_of_a_large_vocabulary(num_rows: int, size: int) -> None:
    torch.manual_seed(0)
    logits_RV, ids_R = torch.randn(num_rows, size, device=CUDA) * 6, torch.randint(size, (num_rows,), device=CUDA)
    log_sum_R, logprob_R = summed_logprobs(logits_RV, ids_R)
    exact_RV = logits_RV.double().log_softmax(-1)
    torch.testing.assert_close(logprob_R.double(), exact_RV.gather(1, ids_R[:, None])[:, 0], rtol=1e-6, atol=5e-6)
    assert torch.equal(log_sums(logits_RV), log_sum_R)
    torch.testing.assert_close(
        entropies(logits_RV, log_sum_R).double(), -(exact_RV.exp() * exact_RV).sum(-1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("size", [VOCAB, 4097])
def test_gradients_overwrite_logits_without_a_race(dtype: torch.dtype, softcap: float | None, size: int) -> None:
    torch.manual_seed(0)
    logits_RV = torch.randn(400, size, device=CUDA) * 3
    ids_R, dlogprobs_R = torch.randint(size, (400,), device=CUDA), torch.randn(400, device=CUDA)
    log_sum_R = log_sums(logits_RV, "eager")
    expected_RV = logits_to_gradient(logits_RV.clone(), ids_R, log_sum_R, dlogprobs_R, softcap, "eager", dtype)
    for _ in range(5):
        dlogits_RV = logits_to_gradient(logits_RV.clone(), ids_R, log_sum_R, dlogprobs_R, softcap, "triton", dtype)
        torch.testing.assert_close(dlogits_RV, expected_RV, rtol=1e-2 if dtype.itemsize == 2 else 1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_optimizer_steps_of_many_leaves(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = [(1024, 3000), (128,), (77, 5), (1,), (2048, 512)]
    states = []
    for impl in ("eager", "triton"):
        torch.manual_seed(1)
        master_P = torch.cat([torch.randn(shape, device=CUDA).flatten() for shape in shapes])
        flats = [torch.zeros_like(master_P) for _ in range(3)]
        leaves = [torch.full(shape, float("nan"), dtype=dtype, device=CUDA) for shape in shapes]
        state = AdamState([master_P], [flats[0]], [flats[1]], flats[2], [flats[2]])
        for number in (1, 2, 3):
            state.gradient_P.normal_(generator=torch.Generator(CUDA).manual_seed(number))
            if number == 3:
                state.gradient_P[5] = float("nan")
            norm = adamw(state, AdamStep(1e-2, 0.1, 1.0, 4, number), leaves, impl)
            assert bool(norm.isfinite()) == (number < 3)
            assert not state.gradient_P.any()
        assert torch.equal(torch.cat([leaf.flatten() for leaf in leaves]), master_P.to(dtype))
        states.append((master_P, *flats))
    for left, right in zip(*states, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_of_weights_are_added_in_place(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    x_TK = torch.randn(300, 256, device=CUDA).to(dtype)
    dy_TN = torch.randn(300, 1024, device=CUDA).to(dtype)[:, :512]  # as the first half of rows of logits
    weight = DenseWeight(torch.zeros(512, 256, dtype=dtype, device=CUDA))
    leaf = weight.require_grad()
    leaf.grad = torch.randn(512, 256, device=CUDA)
    expected_NK, memory = leaf.grad.double() + dy_TN.double().T @ x_TK.double(), leaf.grad.data_ptr()
    add_weight_grad(x_TK, dy_TN, weight, fast=False)
    assert leaf.grad.data_ptr() == memory
    torch.testing.assert_close(leaf.grad.double(), expected_NK, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------- micro-batches


def made(*, qk_norm: bool) -> Decoder:
    torch.manual_seed(3)
    decoder = build_decoder(msgspec.structs.replace(SIZES, qk_norm=qk_norm), WeightFormat(torch.bfloat16, CUDA))
    for parameter in decoder.parameters():
        noise = torch.randn(parameter.shape)
        parameter.fill(0, noise * 0.05 if len(parameter.shape) > 1 else 1 + noise * 0.1)
    return decoder


def adapter_on(decoder: Decoder) -> TrainedAdapter:
    targets = [BankTarget(f"model.layers.{t.layer}.{t.path}", t.linear, t.part) for t in decoder.linears()]
    bank = AdapterBank(targets, max_adapters=2, num_rows=16, fmt=decoder.fmt)
    slots = [random_adapter(bank, name, {t.path: (8, 2.0) for t in targets}, 0) for name in ("a", "b")]
    for slot in slots:
        for leaves in bank.leaves(slot).values():
            leaves.b_rN.data.normal_(0, 0.02)
    return TrainedAdapter(bank, (slots[0], slots[1]), None)


def items(slot: int | None) -> list[Item]:
    generator = np.random.default_rng(0)
    samples = []
    for length in LENGTHS:
        ids = generator.integers(1, SIZES.vocab_size, length + 1)
        samples.append(Sample.from_weighted(ids, [0.0] + [1.0] * length))
    pair = Dpo(beta=0.1, reference_positive=-5000.0, reference_negative=-3000.0)

    def item(sides: tuple[Sample, ...], loss: object) -> Item:
        return Item(sides, loss, slot, None, lambda _loss, _values: None)  # type: ignore[arg-type]

    return [*(item((sample,), LanguageModelling()) for sample in samples[:2]), item(tuple(samples[2:]), pair)]


def gradient_of(decoder: Decoder, trained: TrainedAdapter | TrainedBackbone, kept: tuple[int, int]) -> torch.Tensor:
    trained.parameters.drop_gradient()
    for _ in MicroBatch(decoder, items(trained.slot), num_kept=kept[0], num_whole=kept[1]).run():
        pass
    return trained.parameters._gradient_P.clone()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_what_is_kept_does_not_change_the_gradient(full: bool, qk_norm: bool) -> None:
    decoder = made(qk_norm=qk_norm)
    trained = TrainedBackbone(decoder, None) if full else adapter_on(decoder)
    whole_P = gradient_of(decoder, trained, (3, 3))
    assert float(whole_P.abs().max()) > 0
    # Flash attention adds up the gradient of queries in any order: it moves by some units in bf16's last place (2^-8)
    # from run to run, and so does what the layers below make of it, at times where it is largest.
    for kept in ((3, 0), (2, 1), (0, 0)):
        assert_close(gradient_of(decoder, trained, kept), whole_P, 2e-2)


@pytest.mark.parametrize("full", [False, True])
def test_a_micro_batch_waits_for_nothing(full: bool) -> None:
    decoder = made(qk_norm=True)
    trained = TrainedBackbone(decoder, None) if full else adapter_on(decoder)
    gradient_of(decoder, trained, (2, 1))
    with no_waits():
        gradient_of(decoder, trained, (2, 1))


def requested_bytes() -> int:
    """What tensors hold, without what the allocator leaves unsplit: up to a MiB more for each of them."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_layer_takes_the_memory_that_was_counted(is_lean: bool, qk_norm: bool) -> None:
    decoder = made(qk_norm=qk_norm)
    trained = adapter_on(decoder)
    batch = MicroBatch(decoder, items(trained.slot), num_kept=3)
    forward = batch._forward()
    x_TE = torch.randn(TOKENS, SIZES.hidden_size, device=CUDA).bfloat16().requires_grad_()
    layer, steps = decoder.layers[1], footprint(decoder.config, decoder.fmt, TOKENS, Trained(targets=()))
    for _ in range(2):  # the first one also fills tables and workspaces
        torch.cuda.synchronize()
        before = requested_bytes()
        with keeping_less(is_lean):
            y_TE, residual_TE = layer(x_TE, None, forward)
        taken = requested_bytes() - before + x_TE.nbytes
        taken -= y_TE.nbytes  # goes on to the next layer; the other output is kept by this one
        del y_TE, residual_TE
    counted = steps.lean[1] if is_lean else steps.saved[1]
    assert taken == pytest.approx(counted, rel=0.02)
