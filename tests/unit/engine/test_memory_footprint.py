"""What a layer keeps without data is what it keeps with data; `benchmarks memory` measures whole runs."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from harmonia.kernels.lora import LoraSegment
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.forward import Forward, PackedAttention
from harmonia.layers.linear import WeightFormat
from harmonia.models.families import build_decoder
from harmonia.train.footprint import Trained, footprint
from tests.unit.engine.tiny import MODEL

CPU = torch.device("cpu")
TOKENS = 96
SIZES = msgspec.structs.replace(MODEL, max_seq_len=TOKENS)


def really_saved(fmt: WeightFormat, targets: tuple[str, ...]) -> int:
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
    x_TE, residual_TE = (torch.randn(shape).to(fmt.dtype).requires_grad_() for _ in range(2))
    forward = Forward(torch.arange(TOKENS), PackedAttention((TOKENS,)), (LoraSegment(0, TOKENS, slot),))
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if len(tensor) == TOKENS or (tensor.shape[-1] == TOKENS and tensor.dtype is torch.float32):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        decoder.layers[1](x_TE, residual_TE, forward)
    own = forward.positions_T.untyped_storage()._cdata, decoder.ropes.full.cos_sin_CD.untyped_storage()._cdata
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


@pytest.mark.parametrize("targets", [(), ("q_proj",), ("o_proj", "down_proj")])
@pytest.mark.parametrize(
    "fmt",
    [WeightFormat(torch.float32, CPU), WeightFormat(torch.bfloat16, CPU), WeightFormat(torch.float32, CPU, int8=True)],
    ids=["float32", "bfloat16", "int8"],
)
def test_a_layer_keeps_what_was_counted(fmt: WeightFormat, targets: tuple[str, ...]) -> None:
    counted = footprint(SIZES, fmt, TOKENS, Trained(targets=targets)).saved[1]
    assert counted == really_saved(fmt, targets)


def test_keeping_more_layers_takes_more_and_slices_then_take_less() -> None:
    steps = footprint(SIZES, WeightFormat(torch.float32, CPU), 4096, Trained(targets=()))
    resident = [steps.resident(kept) for kept in range(SIZES.num_layers + 1)]
    slices = [steps.slice(kept) for kept in range(SIZES.num_layers + 1)]
    assert resident == sorted(set(resident))
    assert slices == sorted(slices, reverse=True)
    assert resident[0] == sum(steps.inputs)
    assert resident[-1] == sum(steps.saved)
