"""Heads from the projection: the GPU kernel, in Triton's interpreter, against the operations that it stands for."""

import os

import pytest
import torch

from harmonia.kernels.heads import heads_into_cache, rotated_heads
from harmonia.kernels.pages import LayerCache
from harmonia.kernels.projection import Heads
from tests.unit.kernels.gradients import assert_close, gradients, kept

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has these with a GPU")

SIZES = [(4, 2, 16), (9, 3, 8), (5, 1, 12), (1, 1, 40)]


def made(
    heads: int, kv_heads: int, size: int, *, norm: bool, tokens: int = 5
) -> tuple[torch.Tensor, Heads, torch.Tensor]:
    """A projection, how it becomes heads, and positions."""
    torch.manual_seed(heads + size + tokens)
    weights = (torch.randn(size), torch.randn(size)) if norm else (None, None)
    shape = Heads(heads, kv_heads, size, torch.randn(50, size), *weights, 1e-6)
    return torch.randn(tokens, (heads + 2 * kv_heads) * size), shape, torch.randint(0, 50, (tokens,))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_serving_writes_keys_and_values_and_returns_queries(sizes, norm):
    qkv_TF, heads, positions_T = made(*sizes, norm=norm)
    slots_T = torch.tensor([3, 11, 0, 7, 4])
    caches = [LayerCache(*torch.full((2, 3, 4, sizes[1], sizes[2]), torch.nan)) for _ in range(2)]
    expected_THD = heads_into_cache(qkv_TF, heads, positions_T, caches[0], slots_T, "eager")
    actual_THD = heads_into_cache(qkv_TF, heads, positions_T.int(), caches[1], slots_T.int(), "triton")
    assert actual_THD.is_contiguous()
    torch.testing.assert_close(actual_THD, expected_THD)
    torch.testing.assert_close(caches[1].k_NPGD, caches[0].k_NPGD, equal_nan=True)
    torch.testing.assert_close(caches[1].v_NPGD, caches[0].v_NPGD, equal_nan=True)


def test_rows_without_a_slot_write_nothing():
    qkv_TF, heads, positions_T = made(4, 2, 16, norm=True)
    cache = LayerCache(*torch.full((2, 1, 4, 2, 16), torch.nan))
    heads_into_cache(qkv_TF, heads, positions_T, cache, torch.tensor([-1, 2, -1, -1, -1], dtype=torch.int32), "triton")
    for x_PGD in (cache.k_NPGD[0], cache.v_NPGD[0]):
        assert x_PGD.isnan().flatten(1).all(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_training_gives_the_same_heads_and_gradients(sizes, norm, tokens, monkeypatch):
    monkeypatch.setattr("harmonia.kernels.heads_triton._TOKENS_PER_PROGRAM", 2)
    qkv_TF, heads, positions_T = made(*sizes, norm=norm, tokens=tokens)
    weights = (heads.q_norm_D, heads.k_norm_D) if norm else ()

    def run(impl, x_TF, *norms):
        return rotated_heads(x_TF, heads._replace(**dict(zip(("q_norm_D", "k_norm_D"), norms))), positions_T, impl)  # noqa: B905

    ours = gradients(lambda *x: run("triton", *x), qkv_TF, *weights)
    for actual, expected in zip(ours, gradients(lambda *x: run("eager", *x), qkv_TF, *weights), strict=True):
        assert_close(actual, expected)
    # Frozen norms take another way through the kernel.
    frozen = gradients(lambda x: rotated_heads(x, heads, positions_T, "triton"), qkv_TF)
    torch.testing.assert_close(frozen[:4], ours[:4])


def test_a_projection_and_its_gradient_may_be_strided():
    qkv_TF, heads, positions_T = made(4, 2, 16, norm=True)
    wide_TF = torch.cat((qkv_TF, torch.full_like(qkv_TF, torch.nan)), dim=1)

    def run(impl, x_TF):
        mixed = rotated_heads(x_TF[:, : qkv_TF.shape[1]], heads, positions_T, impl)
        return tuple(x_THD.permute(2, 0, 1) for x_THD in mixed)

    for actual, expected in zip(
        gradients(lambda x: run("triton", x), wide_TF), gradients(lambda x: run("eager", x), wide_TF), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_half_precision():
    qkv_TF, heads, positions_T = made(4, 2, 16, norm=True)
    half = heads._replace(q_norm_D=heads.q_norm_D.bfloat16(), k_norm_D=heads.k_norm_D.bfloat16())
    leaf_TF = qkv_TF.bfloat16().requires_grad_()
    q_THD, k_TGD, v_TGD = rotated_heads(leaf_TF, half, positions_T, "triton")
    (q_THD.sum() + k_TGD.sum() + v_TGD.sum()).backward()
    assert leaf_TF.grad is not None and leaf_TF.grad.dtype is torch.bfloat16
    expected = rotated_heads(qkv_TF.bfloat16().float(), half, positions_T, "eager")
    for actual, exact in zip((q_THD, k_TGD, v_TGD), expected, strict=True):
        assert_close(actual.float(), exact.float(), 0.01)


@pytest.mark.parametrize("norm", [False, True])
def test_no_more_is_kept_than_by_the_single_operations(norm):
    """The memory plan counts on the meta device, where the single operations run."""
    qkv_TF, heads, positions_T = made(4, 2, 16, norm=norm)
    kept_by = {}
    for impl in ("triton", "eager"):
        storages: dict[int, torch.Tensor] = {}

        def note(tensor, storages=storages):
            storages[tensor.untyped_storage()._cdata] = tensor
            return tensor

        leaf_TF = qkv_TF.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            q_THD, k_TGD, v_TGD = rotated_heads(leaf_TF, heads, positions_T, impl)
            (q_THD * q_THD).sum(), (k_TGD * k_TGD).sum()
            (v_TGD if impl == "triton" else v_TGD.contiguous()).square()  # as attention keeps them
        kept_by[impl] = sum(x.untyped_storage().nbytes() for x in storages.values() if len(x) == 5)
    assert kept_by["triton"] == kept_by["eager"]
    on_meta = kept(lambda x: rotated_heads(x, heads._replace(**meta(heads)), positions_T.to("meta")), qkv_TF.to("meta"))
    assert on_meta


def meta(heads: Heads) -> dict[str, torch.Tensor]:
    """Its tensors without data."""
    return {name: x.to("meta") for name, x in heads._asdict().items() if isinstance(x, torch.Tensor)}
