"""What a layer keeps without data is what it keeps with data; `benchmarks memory` measures whole runs."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from harmonia.kernels.again import keeping_less
from harmonia.kernels.lora import LoraBatch, LoraSegment
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.forward import Forward, PackedAttention
from harmonia.layers.linear import WeightFormat
from harmonia.models.families import build_decoder
from harmonia.train.footprint import Trained, footprint
from tests.unit.engine.tiny import MODEL

CPU = torch.device("cpu")
TOKENS = 96
SIZES = msgspec.structs.replace(MODEL, max_seq_len=TOKENS)


def really_saved(fmt: WeightFormat, targets: tuple[str, ...], *, is_lean: bool) -> int:
    """Bytes of the storages that one layer keeps on the CPU with an adapter in training."""
    decoder = build_decoder(SIZES, fmt)
    for parameter in decoder.parameters():
        parameter.fill(0, torch.randn(parameter.shape) * 0.05)
    decoder.pack()
    every = [BankTarget(f"{t.layer}.{t.path}", t.linear, t.part) for t in decoder.linears()]
    bank = AdapterBank(every, max_adapters=1, num_rows=4, fmt=fmt)
    slot = bank.create("a", {t.path: (4, 1.0) for t in every if not targets or t.part in targets})
    bank.leaves(slot)
    shape = TOKENS, SIZES.hidden_size
    x_TE = torch.randn(shape).to(fmt.dtype).requires_grad_()
    forward = Forward(torch.arange(TOKENS), PackedAttention((TOKENS,)), LoraBatch((LoraSegment(0, TOKENS, slot),)))
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if len(tensor) == TOKENS or (tensor.shape[-1] == TOKENS and tensor.dtype is torch.float32):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with keeping_less(is_lean), saved_tensors_hooks(note, lambda tensor: tensor):
        decoder.layers[1](x_TE, None, forward)
    own = forward.positions_T.untyped_storage()._cdata, decoder.ropes.full.cos_sin_CD.untyped_storage()._cdata
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize("targets", [(), ("q_proj",), ("o_proj", "down_proj")])
@pytest.mark.parametrize(
    "fmt",
    [WeightFormat(torch.float32, CPU), WeightFormat(torch.bfloat16, CPU), WeightFormat(torch.float32, CPU, int8=True)],
    ids=["float32", "bfloat16", "int8"],
)
def test_a_layer_keeps_what_was_counted(fmt: WeightFormat, targets: tuple[str, ...], is_lean: bool) -> None:
    steps = footprint(SIZES, fmt, TOKENS, Trained(targets=targets))
    counted = steps.lean[1] if is_lean else steps.saved[1]
    assert counted == really_saved(fmt, targets, is_lean=is_lean)


def test_a_lean_layer_on_a_gpu_keeps_what_only_products_and_attention_can_make() -> None:
    fmt, model = WeightFormat(torch.bfloat16, torch.device("cuda")), msgspec.structs.replace(SIZES, qk_norm=True)
    steps = footprint(model, fmt, TOKENS, Trained(targets=()))
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_dim
    projection, mixed = (heads + 2 * kv_heads) * size, heads * size
    features = 2 * model.hidden_size + projection + mixed + 2 * model.intermediate_size
    assert steps.lean[1] == TOKENS * (2 * features + 4 * heads)
    assert steps.saved[1] > 1.3 * steps.lean[1]


def test_keeping_more_layers_takes_more_and_slices_then_take_less() -> None:
    steps = footprint(SIZES, WeightFormat(torch.float32, CPU), 4096, Trained(targets=()))
    resident = [steps.resident(kept) for kept in range(SIZES.num_layers + 1)]
    slices = [steps.slice(kept) for kept in range(SIZES.num_layers + 1)]
    assert resident == sorted(set(resident))
    assert slices == sorted(slices, reverse=True)
    assert resident[0] == sum(steps.inputs)
    assert resident[-1] == sum(steps.saved)
    lean = [steps.resident(SIZES.num_layers, whole) for whole in range(SIZES.num_layers + 1)]
    assert lean == sorted(set(lean))
    assert (lean[0], lean[-1]) == (sum(steps.lean), sum(steps.saved))
