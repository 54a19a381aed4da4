"""AdamW against torch's own optimizer and clipping, eager and as a GPU kernel in Triton's interpreter or on a GPU."""

import importlib.util

import pytest
import torch

from harmonia.kernels.optimizer import AdamState, AdamStep, adamw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["eager", *(["triton"] if importlib.util.find_spec("triton") else [])]
SHAPES = ((3, 7), (5000,), (1,), (64, 16))
STEPS = (AdamStep(1e-2, 0.1, 1.0, 3, 1), AdamStep(3e-3, 0.0, 0.0, 1, 2), AdamStep(1e-2, 0.1, 1e9, 2, 3))


def made(dtype: torch.dtype) -> tuple[AdamState, list[torch.Tensor], list[torch.Tensor]]:
    """State of random masters, leaves full of NaN, and a copy of the masters."""
    torch.manual_seed(0)
    values = [torch.randn(shape, device=DEVICE) for shape in SHAPES]
    master_P = torch.cat([value.flatten() for value in values])
    mean_P, square_P, gradient_P = (torch.zeros_like(master_P) for _ in range(3))
    leaves = [torch.full(shape, float("nan"), dtype=dtype, device=DEVICE) for shape in SHAPES]
    return AdamState([master_P], [mean_P], [square_P], gradient_P, [gradient_P]), leaves, values


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_steps_equal_those_of_torch(impl, dtype):
    state, leaves, values = made(dtype)
    theirs = [value.clone().requires_grad_() for value in values]
    torchs = torch.optim.AdamW(theirs, betas=(0.9, 0.999), eps=1e-8)
    for step in STEPS:
        gradient_P = torch.randn_like(state.gradient_P)
        state.gradient_P.copy_(gradient_P)
        for their, part in zip(theirs, gradient_P.split([value.numel() for value in values]), strict=True):
            their.grad = part.view_as(their) / step.num_samples
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs, step.max_norm or 1e9)
        for group in torchs.param_groups:
            group["lr"], group["weight_decay"] = step.lr, step.wd
        torchs.step()
        norm = adamw(state, step, leaves, impl)
        torch.testing.assert_close(norm, expected_norm)
        assert not state.gradient_P.any()
        expected_P = torch.cat([their.detach().flatten() for their in theirs])
        torch.testing.assert_close(state.masters[0], expected_P, rtol=2e-5, atol=1e-6)
        rounded_P = torch.cat([leaf.flatten() for leaf in leaves])
        # Triton's interpreter cuts fp32 off where it should round it to bf16.
        tolerance = 8e-3 if dtype is torch.bfloat16 and DEVICE == "cpu" else 0
        torch.testing.assert_close(rounded_P, state.masters[0].to(dtype), rtol=tolerance, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nothing_moves_by_a_broken_gradient(impl, broken):
    state, leaves, values = made(torch.bfloat16)
    state.gradient_P.fill_(1.0)
    state.gradient_P[17] = broken
    norm = adamw(state, STEPS[0], leaves, impl)
    assert not norm.isfinite()
    assert torch.equal(state.masters[0], torch.cat([value.flatten() for value in values]))
    assert not any(tensor.any() for tensor in (*state.means, *state.squares, state.gradient_P))


@pytest.mark.parametrize("impl", IMPLS)
def test_leaves_of_two_types_and_many_blocks(impl, monkeypatch):
    if impl == "triton":
        monkeypatch.setattr("harmonia.kernels.optimizer_triton._BLOCK", 64)
    state, leaves, _ = made(torch.float16)
    leaves[1] = leaves[1].float()
    state.gradient_P.fill_(1.0)
    adamw(state, STEPS[0], leaves, impl)
    masters = state.masters[0].split([leaf.numel() for leaf in leaves])
    for leaf, master in zip(leaves, masters, strict=True):
        assert torch.equal(leaf.flatten(), master.to(leaf.dtype))
