"""Checkpoints in fp8 as others write them, against the same weights written out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harmonia.errors import InvalidRequestError, UnsupportedModelError
from harmonia.kernels.fp8_weight import TOKEN_STEPS, Fp8Weight, Tile, dequantise, quantise
from harmonia.layers import linear, mlp
from harmonia.layers.linear import Linear, WeightFormat
from harmonia.models import load_decoder, open_model
from harmonia.models.export import write_model
from harmonia.models.sizes import weight_bytes
from tests.unit.models import tiny
from tests.unit.models.paged import PagedRunner

CPU = torch.device("cpu")
FP8 = WeightFormat(torch.float32, CPU, fp8=True)
TOKENS = list(range(40))
NEAR = 0.3
"""Of logits of tiny random models, whose large weights magnify what is rounded."""

TOKEN_SCHEME = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}


def compressed(strategy: str, **more: object) -> dict[str, object]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "dynamic": False, "symmetric": True, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": TOKEN_SCHEME}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def whole(weight: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A scale for the whole matrix."""
    values, scale = quantise(weight, Tile(*weight.shape))
    return values, scale.reshape(shape)


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
KINDS: dict[str, tuple[dict[str, object], str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]] = {
    "blocks": (BLOCKS, "weight_scale_inv", lambda w: quantise(w, Tile(128, 128))),
    "compressed blocks": (
        compressed("block", block_structure=[128, 128]),
        "weight_scale",
        lambda w: quantise(w, Tile(128, 128)),
    ),
    "channels": (
        compressed("channel"),
        "weight_scale",
        lambda w: quantise(w, Tile(1, w.shape[1])),
    ),
    "matrices": (
        compressed("tensor"),
        "weight_scale",
        lambda w: whole(w, ()),
    ),
    "fp8 matrices": (
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        "weight_scale",
        lambda w: whole(w, (1,)),
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    tiny.reference_model("qwen3").save_pretrained(folder)
    return folder


def write_fp8(plain: Path, folder: Path, kind: str) -> tuple[Path, Path]:
    """(checkpoint in fp8, the same written out)."""
    config, suffix, quantised = KINDS[kind]
    stored, dense = {}, {}
    for name, values in load_file(plain / "model.safetensors").items():
        stored[name] = dense[name] = values
        if re.search(r"layers.*_proj\.weight$", name):
            stored[name], scale = quantised(values)
            # llm-compressor keeps scales in bf16
            stored[name.removesuffix("weight") + suffix] = scale = (
                scale.bfloat16() if suffix == "weight_scale" else scale
            )
            tile = Tile(128, 128) if "blocks" in kind else Tile(1, values.shape[1])
            grid = scale.float().reshape(-1, 1) if "blocks" not in kind else scale.float()
            dense[name] = dequantise(stored[name], grid.expand(tile.grid(*values.shape)), tile)
    for name, tensors, extra in (("fp8", stored, {"quantization_config": config}), ("dense", dense, {})):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
        values = json.loads((plain / "config.json").read_text()) | extra
        (folder / name / "config.json").write_text(json.dumps(values))
    return folder / "fp8", folder / "dense"


def logits(folder: Path, fmt: WeightFormat) -> torch.Tensor:
    return PagedRunner(tiny.load(folder, fmt), 1, 40).logits({0: TOKENS})[0]


def rounding(product: Callable[..., torch.Tensor], x_TK: torch.Tensor, *arguments: object) -> torch.Tensor:
    """A product of rounded activations."""
    tile = Tile(1, x_TK.shape[1])
    return product(dequantise(*quantise(x_TK, tile, TOKEN_STEPS), tile), *arguments)


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_scales_are_kept(plain: Path, tmp_path: Path, kind: str) -> None:
    fp8, dense = write_fp8(plain, tmp_path, kind)
    decoder, reference = tiny.load(fp8, FP8), tiny.load(dense)
    stored = load_file(fp8 / "model.safetensors")
    for target, other in zip(decoder.linears(), reference.linears(), strict=True):
        weight, part = target.linear.weight, target.linear.part(target.part)
        assert isinstance(weight, Fp8Weight)
        rows = slice(part.start, part.start + part.size)
        name = f"model.layers.{target.layer}.{target.path}.weight"
        assert torch.equal(weight.weight_NK[rows].float(), stored[name].float())
        ids = torch.arange(rows.start, rows.stop)
        assert torch.equal(weight.rows(ids), other.linear.weight.rows(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_it_serves_as_the_same_weights_do(
    plain: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out on reading it is the same model; in fp8 inputs of its layers are rounded, and nothing else."""
    fp8, dense = write_fp8(plain, tmp_path, kind)
    unrounded, ours = logits(dense, tiny.FP32), logits(fp8, FP8)
    assert torch.equal(logits(fp8, tiny.FP32), unrounded)
    assert logits(fp8, WeightFormat(torch.float32, CPU, int8=True)).isfinite().all()
    for module, name in ((linear, "adapted_matmul"), (mlp, "gated_matmul")):
        monkeypatch.setattr(module, name, partial(rounding, getattr(module, name)))
    # Where two sums differ in the last digit, a value between two of e4m3 may be rounded to either.
    assert distance(ours, logits(dense, tiny.FP32)) < 0.01
    assert distance(ours, unrounded) > 0.02


def test_what_is_not_in_fp8_is_rounded_while_it_is_read(plain: Path, tmp_path: Path) -> None:
    fp8, dense = write_fp8(plain, tmp_path, "blocks")
    name = "model.layers.1.mlp.up_proj.weight"
    stored = load_file(fp8 / "model.safetensors")
    del stored[f"{name}_scale_inv"]
    save_file(stored | {name: load_file(dense / "model.safetensors")[name]}, fp8 / "model.safetensors")
    assert distance(logits(fp8, FP8), logits(dense, tiny.FP32)) < NEAR


@pytest.mark.parametrize("family", ["llama-tied-bias", "qwen3_moe", "gemma3"])
def test_any_model_is_rounded_on_load(family: str, tmp_path: Path) -> None:
    tiny.reference_model(family).save_pretrained(tmp_path)
    decoder = tiny.load(tmp_path, FP8)
    assert all(isinstance(target.linear.weight, Fp8Weight) for target in decoder.linears())
    assert not isinstance(decoder.head_weight, Fp8Weight) and not isinstance(decoder.embedding.weight, Fp8Weight)
    reference = logits(tmp_path, tiny.FP32)
    # A router that is nearly even chooses another expert.
    assert distance(logits(tmp_path, FP8), reference) < (0.5 if "moe" in family else NEAR)


def test_sizes_are_counted_as_they_are_kept(plain: Path, tmp_path: Path) -> None:
    fp8, _ = write_fp8(plain, tmp_path, "blocks")
    for folder in (plain, fp8):
        source = open_model(folder)
        counted, decoder = weight_bytes(source.config, FP8), tiny.load(folder, FP8)
        real: dict[str, int] = {}
        for kind, storage in decoder.storages():
            real[kind] = real.get(kind, 0) + storage.num_bytes
        assert counted == real
    assert 3 * counted["layers"] < weight_bytes(source.config, tiny.FP32)["layers"]


def test_a_saved_model_is_written_out(plain: Path, tmp_path: Path) -> None:
    fp8, _ = write_fp8(plain, tmp_path, "blocks")
    source = open_model(fp8)
    (fp8 / "tokenizer.json").write_text("{}")
    decoder = load_decoder(source, FP8)
    (tmp_path / "saved").mkdir()
    write_model(tmp_path / "saved", source, decoder)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    fused: Linear = next(target.linear for target in decoder.linears() if target.part == "q_proj")
    rows = torch.arange(fused.part("q_proj").size)
    assert torch.equal(again.model.layers[0].self_attn.q_proj.weight, fused.weight.rows(rows))


def test_the_weights_do_not_train(plain: Path) -> None:
    target = next(tiny.load(plain, FP8).linears())
    with pytest.raises(InvalidRequestError, match="train an adapter"):
        target.linear.weight.require_grad()


STATIC = compressed("channel")
STATIC["config_groups"]["group_0"]["input_activations"] = TOKEN_SCHEME | {"dynamic": False}  # type: ignore[index]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"quant_method = 'gptq' is not supported. Supported: .*128 x 128.*bfloat16",
        ),
        ({"quant_method": "awq"}, r"quant_method = 'awq'"),
        ({}, r"quant_method = ''"),
        (BLOCKS | {"fmt": "e5m2"}, r"fmt = 'e5m2'"),
        (BLOCKS | {"activation_scheme": "static"}, r"activation_scheme = 'static'"),
        (BLOCKS | {"weight_block_size": [64, 128]}, r"weight_block_size = \[64, 128\]"),
        (compressed("group"), r"strategy = 'group'"),
        (compressed("channel", type="int"), r"type = 'int, 8 bits'"),
        (compressed("channel", num_bits=4), r"type = 'float, 4 bits'"),
        (STATIC, r"dynamic = False"),
        ({"quant_method": "compressed-tensors"}, r"config_groups = \[\]"),
        ("gptq", r"'quantization_config' must be an object"),
    ],
)
def test_other_methods_are_refused_by_name(plain: Path, tmp_path: Path, config: object, says: str) -> None:
    values = json.loads((plain / "config.json").read_text()) | {"quantization_config": config}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedModelError, match=says):
        open_model(tmp_path)


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "config", "says"),
    [
        ({f"{Q_PROJ}_scale_inv": None}, BLOCKS, r"q_proj.weight' is in fp8 without a scale: .*_scale_inv or _scale"),
        ({f"{Q_PROJ}_scale_inv": torch.ones(2, 1)}, BLOCKS, r"scale_inv' has shape \[2, 1\], expected \[1, 1\]"),
        ({}, None, r"is in fp8, and config.json has no quantization_config"),
        ({Q_PROJ: torch.ones(64, 64).to(torch.float8_e5m2)}, BLOCKS, r"F8_E5M2"),
    ],
)
def test_broken_scales_are_named(
    plain: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], config: object, says: str
) -> None:
    fp8, _ = write_fp8(plain, tmp_path, "blocks")
    tensors = load_file(fp8 / "model.safetensors") | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, fp8 / "model.safetensors")
    values = json.loads((fp8 / "config.json").read_text()) | {"quantization_config": config}
    (fp8 / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedModelError, match=says):
        tiny.load(fp8, FP8)
