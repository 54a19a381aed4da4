"""Gradients of products with weights in every form against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from harmonia.errors import InvalidRequestError
from harmonia.kernels.matmul import DenseWeight, Int8Weight, matmul, weight_rows

CPU = torch.device("cpu")
SIZES = ((128, 48), (192, 64), (13, 70), (100, 576), (64, 70))
FORMS = ("fp32", "bf16 values", "int8")
NUM_TOKENS = (0, 1, 3, 40, 170)


def made(form: str, num_out: int, num_in: int) -> DenseWeight | Int8Weight:
    torch.manual_seed(0)
    values_NK = torch.randn(num_out, num_in)
    if form == "int8":
        weight = Int8Weight.empty(num_out, num_in, CPU)
    else:
        weight = DenseWeight.empty(num_out, num_in, torch.float32, CPU)
    weight.fill(0, values_NK.bfloat16() if form == "bf16 values" else values_NK)
    return weight


def plain(weight: DenseWeight | Int8Weight) -> torch.Tensor:
    """The weight in rows, as a copy."""
    if isinstance(weight, DenseWeight):
        return weight.dense().clone()
    return weight.weight_NK.float() * weight.scale_N[:, None]


def in_rows(weight: DenseWeight, panels: torch.Tensor) -> torch.Tensor:
    """What has the layout of the leaf, in rows."""
    return panels if weight.panels_XKP is None else panels.transpose(1, 2).flatten(0, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        assert (actual - expected).abs().max() <= tolerance * max(1e-3, float(expected.detach().abs().max()))


def leaf_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_inputs_get_their_gradient_through_a_frozen_weight(form, size, num_tokens):
    weight, x, dy = made(form, *size), torch.randn(num_tokens, size[1]), torch.randn(num_tokens, size[0])
    ours, theirs = leaf_of(x), leaf_of(x)
    matmul(ours, weight).backward(dy)
    F.linear(theirs, plain(weight)).backward(dy)
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("form", ["fp32", "bf16 values"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_weight_and_bias_get_their_gradients(form, size, num_tokens, impl):
    weight, x, dy = made(form, *size), torch.randn(num_tokens, size[1]), torch.randn(num_tokens, size[0])
    matmul(torch.randn(1, size[1]), weight)  # packed, where it can be
    w, b, leaf = leaf_of(plain(weight)), leaf_of(torch.randn(size[0])), weight.require_grad()
    bias = leaf_of(b)
    y = matmul(x, weight, bias, impl)
    y.backward(dy)
    expected = F.linear(x, w, b)
    expected.backward(dy)
    assert_close(y, expected)
    assert_close(in_rows(weight, leaf.grad), w.grad)
    assert_close(bias.grad, b.grad)


def test_gradients_add_up_in_a_buffer_given_beforehand():
    weight, x = made("fp32", 128, 48), torch.randn(5, 48)
    weight.pack()
    leaf = weight.require_grad()
    buffer = torch.zeros(leaf.numel() + 7)
    leaf.grad = buffer[7:].view(leaf.shape)
    for _ in range(2):
        matmul(x, weight).sum().backward()
    assert_close(in_rows(weight, buffer[7:].view(leaf.shape)), 2 * x.sum(0).expand(128, 48))


def test_a_product_keeps_nothing_for_a_frozen_weight_and_the_input_for_a_trained_one():
    kept = []
    weight, x = made("fp32", 128, 48), torch.randn(5, 48, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        matmul(x, weight)
        assert not kept
        weight.require_grad()
        matmul(x, weight)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


@pytest.mark.parametrize("form", ["fp32", "bf16 values"])
@pytest.mark.parametrize("num_tokens", [1, 200])
def test_what_is_written_into_the_leaf_is_served_at_once(form, num_tokens):
    weight, x = made(form, 128, 48), torch.randn(num_tokens, 48)
    weight.pack()
    before = weight.dense().clone()
    leaf = weight.require_grad()
    assert torch.equal(weight.dense(), before)
    with torch.no_grad():
        leaf.mul_(3)
    with torch.inference_mode():
        assert_close(matmul(x, weight), F.linear(x, 3 * before))
        assert torch.equal(weight.rows(torch.tensor([5])), 3 * before[5:6])


def test_a_leaf_outlives_its_weight():
    weight = made("fp32", 64, 32)
    weight.pack()
    expected, leaf = in_rows(weight, weight.weight_NK).clone(), weight.require_grad()
    is_packed = weight.panels_XKP is not None
    del weight
    torch.randn(64, 32)
    assert torch.equal(leaf.detach().transpose(1, 2).flatten(0, 1) if is_packed else leaf.detach(), expected)


def test_a_weight_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        weight = DenseWeight(torch.randn(10, 8))
    leaf = weight.require_grad()
    assert leaf is weight.require_grad()
    matmul(torch.randn(3, 8), weight).sum().backward()
    assert leaf.grad.shape == (10, 8)


def test_a_frozen_weight_gets_no_gradient_again():
    weight, x = made("fp32", 64, 32), torch.randn(3, 32, requires_grad=True)
    leaf = weight.require_grad()
    weight.freeze()
    matmul(x, weight).sum().backward()
    assert leaf.grad is None and x.grad is not None


def test_bf16_weights_get_fp32_gradients():
    torch.manual_seed(0)
    weight, x = DenseWeight(torch.randn(24, 16).bfloat16()), torch.randn(40, 16).bfloat16()
    leaf, w = weight.require_grad(), weight.weight_NK.float().requires_grad_()
    matmul(x, weight).float().square().sum().backward()
    F.linear(x.float(), w).square().sum().backward()
    assert leaf.grad.dtype is torch.float32
    assert_close(leaf.grad, w.grad, 2e-2)


def test_int8_weights_refuse_to_be_trained():
    with pytest.raises(InvalidRequestError, match="float32 or bfloat16"):
        made("int8", 64, 32).require_grad()


@pytest.mark.parametrize("form", FORMS)
def test_large_weights_go_in_parts(form, monkeypatch):
    weight, x, dy = made(form, 576, 256), torch.randn(170, 256), torch.randn(170, 576)
    for name in ("_PART_BYTES", "_EAGER_PART_BYTES"):
        monkeypatch.setattr(f"harmonia.kernels.matmul_grad.{name}", 1 << 17)
    ours, theirs = leaf_of(x), leaf_of(x)
    for impl in ("auto", "eager"):
        ours.grad = theirs.grad = None
        matmul(ours, weight, impl=impl).backward(dy)
        F.linear(theirs, plain(weight)).backward(dy)
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("form", FORMS)
def test_eager_and_fast_agree(form):
    weight, x, dy = made(form, 128, 96), torch.randn(33, 96), torch.randn(33, 128)
    fast, eager = leaf_of(x), leaf_of(x)
    matmul(fast, weight).backward(dy)
    matmul(eager, weight, impl="eager").backward(dy)
    assert_close(fast.grad, eager.grad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["fp32", "bf16 values"])
def test_rows_of_a_trained_table(form, size):
    weight, ids = made(form, *size), torch.tensor([0, 5, 12, 5])
    weight.pack()
    w, leaf, dx = leaf_of(plain(weight)), weight.require_grad(), torch.randn(4, size[1])
    looked_up, expected = weight_rows(weight, ids), w[ids]
    assert torch.equal(looked_up, expected)
    looked_up.backward(dx)
    expected.backward(dx)
    assert_close(in_rows(weight, leaf.grad), w.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_without_memory(dtype):
    weight = DenseWeight(torch.empty(64, 32, dtype=dtype, device="meta"))
    x = torch.empty(5, 32, dtype=dtype, device="meta", requires_grad=True)
    leaf = weight.require_grad()
    matmul(x, weight).sum().backward()
    assert (x.grad.shape, leaf.grad.shape, leaf.grad.dtype) == ((5, 32), (64, 32), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("form", ["dense", "int8"])
def test_gradients_on_a_gpu(form, dtype, tolerance):
    torch.manual_seed(0)
    device, w_NK = torch.device("cuda"), torch.randn(96, 64, device="cuda")
    weight = Int8Weight.empty(96, 64, device) if form == "int8" else DenseWeight.empty(96, 64, dtype, device)
    weight.fill(0, w_NK)
    w, x = (
        weight.rows(torch.arange(96, device=device)).float().requires_grad_(),
        leaf_of(torch.randn(50, 64).to(device, dtype)),
    )
    dy, theirs = torch.randn(50, 96).to(device, dtype), leaf_of(x.float())
    leaf = weight.require_grad() if form == "dense" else None
    matmul(x, weight).backward(dy)
    F.linear(theirs, w).backward(dy.float())
    assert_close(x.grad.float(), theirs.grad, tolerance)
    if leaf is not None:
        assert leaf.grad.dtype is torch.float32
        assert_close(leaf.grad, w.grad, tolerance)
