"""Heads, norms, activations and draws on a GPU against their plain versions, at sizes and types that models have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harmonia.kernels.activation import gated_activation
from harmonia.kernels.heads import heads_into_cache, rotated_heads
from harmonia.kernels.norm import add_rms_norm, rms_norm
from harmonia.kernels.pages import LayerCache
from harmonia.kernels.projection import Heads
from harmonia.kernels.sample import SamplingTensors, sample
from tests.unit.kernels.gradients import assert_close
from tests.unit.kernels.test_sample import keys, settings_of

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

EPS = 1e-6
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
# Heads, key/value heads and their size: Qwen3-8B, Qwen3-0.6B, SmolLM2, Gemma 3, Phi-like sizes, an odd one.
SHAPES = pytest.mark.parametrize(
    "shape", [(32, 8, 128), (16, 8, 128), (9, 3, 64), (4, 1, 256), (32, 32, 96), (20, 4, 80), (7, 7, 40)], ids=str
)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def poison() -> None:
    """Fill memory that the next tensors will get with NaN."""
    for size in (32 << 20, 8 << 20, 1 << 20, *[1 << 16] * 8, *[512] * 8):
        torch.full((size // 4,), torch.nan, device="cuda")


def compare(run: Callable[..., Tensor | tuple[Tensor, ...]], dtype: torch.dtype, *inputs: Tensor) -> None:
    """Outputs and gradients of the kernel against the plain version in fp32."""
    given: list[Tensor] = []
    found = []
    for impl, kind in (("triton", dtype), ("eager", torch.float32)):
        leaves = [x.detach().to(kind).requires_grad_() for x in inputs]
        for leaf in leaves:
            leaf.grad_dtype = None  # norms give fp32 gradients to weights of any type
        poison()
        outputs = run(impl, *leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        given = given or [torch.randn_like(x) for x in outputs]
        poison()
        torch.autograd.backward(outputs, [g.to(kind) for g in given])
        found.append([*outputs, *(leaf.grad for leaf in leaves)])
    for actual, expected in zip(*found, strict=True):
        assert actual is not None and expected is not None
        assert actual.isfinite().all()
        assert_close(actual.float(), expected, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("size", [64, 128, 576, 1000, 1024, 4096, 12288])
@pytest.mark.parametrize("rows", [1, 3, 64, 300, 2000])
def test_norms(rows: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    x_TE, residual_TE, weight_E = (random(*s, dtype=dtype) for s in ((rows, size), (rows, size), (size,)))
    compare(lambda impl, x, w: rms_norm(x, w, EPS, impl), dtype, x_TE, weight_E)
    compare(lambda impl, x, r, w: add_rms_norm(x, r, w, EPS, impl), dtype, x_TE, residual_TE, weight_E)
    with torch.no_grad():
        assert torch.equal(add_rms_norm(x_TE, residual_TE, weight_E, EPS)[1], x_TE + residual_TE)


@DTYPES
def test_norms_of_rows_apart_and_of_none(dtype: torch.dtype) -> None:
    wide_TE, weight_E = random(33, 3 * 256, dtype=dtype), random(256, dtype=dtype)
    compare(lambda impl, x, w: rms_norm(x[:, 256:512], w, EPS, impl), dtype, wide_TE, weight_E)
    compare(lambda impl, x, w: rms_norm(x.view(33, 3, 256)[:, 1:], w, EPS, impl), dtype, wide_TE, weight_E)
    compare(lambda impl, x, w: add_rms_norm(x[:, :256], x[:, 512:], w, EPS, impl), dtype, wide_TE, weight_E)
    assert rms_norm(wide_TE[:0, :256], weight_E, EPS).shape == (0, 256)


def test_a_row_is_the_same_in_every_batch() -> None:
    x_TE, weight_E = random(3000, 4096, dtype=torch.bfloat16), random(4096, dtype=torch.bfloat16)
    together_TE = rms_norm(x_TE, weight_E, EPS)
    for rows in (1, 7, 64, 265, 1024):
        assert torch.equal(rms_norm(x_TE[:rows], weight_E, EPS), together_TE[:rows])
    heads = heads_of((32, 8, 128), torch.bfloat16, norm=True)
    qkv_TF, positions_T = random(3000, 48 * 128, dtype=torch.bfloat16), torch.arange(3000, device="cuda")
    together = rotated_heads(qkv_TF, heads, positions_T)
    for rows in (1, 7, 64, 1024):
        some = rotated_heads(qkv_TF[:rows], heads, positions_T[:rows])
        assert all(torch.equal(part, whole[:rows]) for part, whole in zip(some, together, strict=True))
    cache = LayerCache(*random(2, 200, 16, 8, 128, dtype=torch.bfloat16))
    slots_T = torch.randperm(3200, device="cuda")[:3000].int()
    served = heads_into_cache(qkv_TF, heads, positions_T.int(), cache, slots_T)
    written = (x_NPGD.flatten(0, 1)[slots_T] for x_NPGD in (cache.k_NPGD, cache.v_NPGD))
    assert all(torch.equal(part, whole) for part, whole in zip((served, *written), together, strict=True))


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "size"), [(1, 12288), (64, 3072), (257, 1536), (3, 1001), (5, 1), (0, 64)])
def test_gated_activations(rows: int, size: int, activation, dtype: torch.dtype) -> None:
    if rows:
        gate_up_TF2 = random(rows, 2 * size, dtype=dtype) * 5
        compare(lambda impl, x: gated_activation(x, activation, impl), dtype, gate_up_TF2)
        wide_TF2 = random(rows, 3 * size, dtype=dtype)
        compare(lambda impl, x: gated_activation(x[:, : 2 * size], activation, impl), dtype, wide_TF2)
    else:
        assert gated_activation(random(0, 2 * size, dtype=dtype), activation).shape == (0, size)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_far_out_stay_finite(activation) -> None:
    gates = [-1e30, -200.0, -90.0, -10.5, 0.0, 10.5, 90.0, 1e5, 1e30]
    leaf_TF2 = torch.tensor([gates + [1.0] * len(gates)], device="cuda", requires_grad=True)
    out_TF = gated_activation(leaf_TF2, activation)
    expected_TF = gated_activation(leaf_TF2.detach(), activation, "eager")
    torch.testing.assert_close(out_TF.detach(), expected_TF, rtol=1e-5, atol=1e-5)
    out_TF.sum().backward()
    assert leaf_TF2.grad is not None and leaf_TF2.grad.isfinite().all()


def heads_of(shape: tuple[int, int, int], dtype: torch.dtype, *, norm: bool) -> Heads:
    size = shape[2]
    weights = (random(size, dtype=dtype), random(size, dtype=dtype)) if norm else (None, None)
    angles_CF = torch.rand(3000, size // 2, device="cuda") * 6
    return Heads(*shape, torch.cat((angles_CF.cos(), angles_CF.sin()), 1), *weights, EPS)


@DTYPES
@SHAPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_heads_for_serving(tokens: int, norm: bool, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    heads = heads_of(shape, dtype, norm=norm)
    qkv_TF = random(tokens, (shape[0] + 2 * shape[1]) * shape[2], dtype=dtype)
    positions_T = torch.randint(0, 3000, (tokens,), device="cuda", dtype=torch.int32)
    slots_T = torch.randperm(30 * 16, device="cuda")[:tokens].int()
    slots_T[1::4] = -1
    there = slots_T >= 0
    pages = torch.full((2, 30, 16, *shape[1:]), torch.nan, device="cuda", dtype=dtype)
    cache = LayerCache(*pages)
    poison()
    q_THD = heads_into_cache(qkv_TF, heads, positions_T, cache, slots_T)
    exact = Heads(*(x.float() if isinstance(x, Tensor) else x for x in heads))
    expected = rotated_heads(qkv_TF.float(), exact, positions_T, "eager")
    assert q_THD.is_contiguous()
    assert_close(q_THD.float(), expected[0], TOLERANCE[dtype])
    for x_NPGD, expected_TGD in zip((cache.k_NPGD, cache.v_NPGD), expected[1:], strict=True):
        written_TGD = x_NPGD.flatten(0, 1)[slots_T[there].long()]
        assert_close(written_TGD.float(), expected_TGD[there], TOLERANCE[dtype])
        assert int(x_NPGD.flatten(0, 1).isnan().all(2).all(1).sum()) == 30 * 16 - int(there.sum())


@DTYPES
@SHAPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("tokens", [1, 17, 300])
def test_heads_for_training(tokens: int, norm: bool, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    heads = heads_of(shape, dtype, norm=norm)
    qkv_TF = random(tokens, (shape[0] + 2 * shape[1]) * shape[2], dtype=dtype)
    positions_T = torch.randint(0, 3000, (tokens,), device="cuda")

    def run(impl, x_TF, *norms):
        weights = dict(zip(("q_norm_D", "k_norm_D"), norms, strict=True)) if norms else {}
        return rotated_heads(x_TF, heads._replace(**weights), positions_T, impl)

    norms = (heads.q_norm_D, heads.k_norm_D) if norm else ()
    compare(run, dtype, qkv_TF, *(x for x in norms if x is not None))
    if norm:  # frozen norms take another way through the kernel
        exact = heads._replace(q_norm_D=norms[0].float(), k_norm_D=norms[1].float())
        compare(
            lambda impl, x: rotated_heads(x, heads if impl == "triton" else exact, positions_T, impl), dtype, qkv_TF
        )


def test_heads_of_no_token() -> None:
    heads = heads_of((4, 2, 64), torch.bfloat16, norm=True)
    leaf_TF = random(0, 8 * 64, dtype=torch.bfloat16).requires_grad_()
    q_THD, k_TGD, v_TGD = rotated_heads(leaf_TF, heads, torch.empty(0, device="cuda", dtype=torch.int64))
    (q_THD.sum() + k_TGD.sum() + v_TGD.sum()).backward()
    assert leaf_TF.grad is not None and leaf_TF.grad.shape == (0, 8 * 64)


FILTERS = (
    {},
    {"top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.02},
    {"top_k": 2000, "top_p": 0.5},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.05},
    {"top_k": 1},
    {"top_p": 0.0},
)


def on_gpu(settings: SamplingTensors) -> SamplingTensors:
    names = "temperature_R", "keys_R", "top_k_R", "top_p_R", "min_p_R"
    return SamplingTensors(**{n: x.cuda() for n in names if (x := getattr(settings, n)) is not None})


def agree(logits_RV: Tensor, settings: SamplingTensors, allowed: int = 0) -> None:
    """Both versions draw the same; sums in another order may move a boundary now and then."""
    poison()
    differ = sample(logits_RV, settings) != sample(logits_RV, settings, "eager")
    assert int(differ.sum()) <= allowed


@pytest.mark.parametrize("values", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize(("rows", "size"), [(1, 151936), (64, 151936), (256, 49152), (8, 1000)])
def test_draws(rows: int, size: int, spread: float, values: dict[str, float]) -> None:
    torch.manual_seed(rows)
    values = {name: min(value, size) for name, value in values.items()}
    agree(spread * random(rows, size), on_gpu(settings_of(rows, keys(rows), temperature=0.8, **values)), rows // 64)


@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_equal_probabilities_stand_or_fall_together(values: dict[str, float]) -> None:
    torch.manual_seed(1)
    coarse_RV = random(40, 30_000).mul(2).round()
    coarse_RV[0] = 0.0
    coarse_RV[1] = -torch.inf
    coarse_RV[1, 77] = 3.0
    coarse_RV[2, 10:] = -torch.inf
    coarse_RV[3, 5] = 1e4
    agree(coarse_RV, on_gpu(settings_of(40, keys(40), **values)))


def test_rows_of_every_kind_in_one_batch() -> None:
    torch.manual_seed(2)
    settings = SamplingTensors(
        temperature_R=torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.3]),
        keys_R=keys(10),
        top_k_R=torch.tensor([5000, 5000, 3, 2, 50, 5000, 5000, 40, 1, 5000]),
        top_p_R=torch.tensor([0.5, 1.0, 0.9, 1.0, 0.7, 0.95, 1.0, 0.2, 0.5, 0.99]),
        min_p_R=torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, 0.01, 0.3, 0.0, 0.0, 0.0]),
    )
    agree(3 * random(10, 5000), on_gpu(settings))


def test_draws_follow_the_distribution_and_depend_on_nothing_else() -> None:
    torch.manual_seed(6)
    logits_V, draws = torch.randn(20), 100_000
    settings = on_gpu(settings_of(draws, keys(draws), temperature=0.8))
    ids_R = sample(logits_V.cuda().expand(draws, -1), settings)
    expected_V = torch.softmax(logits_V / 0.8, 0) * draws
    chi_square = ((ids_R.cpu().bincount(minlength=20) - expected_V) ** 2 / expected_V).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand
    logits_RV = 4 * random(40, 151936)
    values = {"temperature": 0.9, "top_k": 200, "top_p": 0.9, "min_p": 0.001}
    together = sample(logits_RV, on_gpu(settings_of(40, keys(40), **values))).tolist()
    for row in range(40):
        alone = on_gpu(settings_of(1, keys(40)[row : row + 1], **values))
        assert sample(logits_RV[row : row + 1], alone).tolist() == [together[row]]


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 300])
@pytest.mark.parametrize("size", [1, 1000, 151936])
def test_greedy_takes_the_first_of_equals(rows: int, size: int) -> None:
    logits_RV = random(rows, size).round()
    ids_R = sample(logits_RV, SamplingTensors())
    assert ids_R.dtype is torch.int64
    assert ids_R.tolist() == logits_RV.cpu().argmax(-1).tolist()
    assert ids_R.tolist() == sample(logits_RV, on_gpu(settings_of(rows, keys(rows), temperature=0.0))).tolist()


def test_a_draw_runs_in_a_graph() -> None:
    logits_RV = 3 * random(5, 151936)
    settings = on_gpu(settings_of(5, keys(5), temperature=0.7, top_k=20, top_p=0.95))
    sample(logits_RV, settings)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids_R = sample(logits_RV, settings)
    logits_RV.copy_(3 * random(5, 151936))
    graph.replay()
    assert torch.equal(ids_R, sample(logits_RV, settings))
