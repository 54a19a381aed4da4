"""Hugging Face folders: shards, names, configurations old and new, and the error of each kind of broken folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.gemma3 import Gemma3Config

from harmonia.errors import UnsupportedModelError
from harmonia.models import load_decoder, open_model
from harmonia.models.decoder import Decoder
from tests.unit.models import tiny
from tests.unit.models.paged import PagedRunner


@pytest.fixture(scope="module")
def llama():
    return tiny.reference_model("llama")


@pytest.fixture
def folder(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))


def edit_tensors(folder: Path, **changes: object) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def assert_same(left: Decoder, right: Decoder) -> None:
    a, b = (PagedRunner(decoder, 1, 40).logits({0: list(range(40))})[0] for decoder in (left, right))
    assert torch.equal(a, b)


def test_shards_by_index(llama, folder, tmp_path):
    sharded = tmp_path / "sharded"
    llama.save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert_same(tiny.load(sharded), tiny.load(folder))


def test_progress_ends_at_one(folder):
    shares: list[float] = []
    load_decoder(open_model(folder), tiny.FP32, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_names_without_their_prefix(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, bare / "model.safetensors")
    assert_same(tiny.load(bare), tiny.load(folder))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_gemma3_with_vision(tmp_path, prefix):
    model = tiny.reference_model("gemma3")
    text, both = tmp_path / "text", tmp_path / "both"
    model.save_pretrained(text)
    both.mkdir()
    config = Gemma3Config(text_config=model.config)
    (both / "config.json").write_text(config.to_json_string())
    tensors = {
        name.replace("model.", prefix, 1): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    extra = {
        "vision_tower.vision_model.embeddings.patch.weight": torch.zeros(3),
        "multi_modal_projector.w": torch.zeros(3),
    }
    save_file(tensors | extra, both / "model.safetensors")
    assert_same(tiny.load(both), tiny.load(text))


def test_old_rope_keys_mean_the_same_as_new_ones(folder, tmp_path):
    new = open_model(folder).config
    edit_config(folder, rope_parameters="drop", rope_theta=10000.0, rope_scaling=None)
    assert open_model(folder).config == new
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    edit_config(folder, rope_scaling=scaling)
    old_style = open_model(folder).config.rope
    edit_config(folder, rope_scaling="drop", rope_theta="drop", rope_parameters=tiny.YARN)
    assert open_model(folder).config.rope == old_style


def test_ends_of_generation_come_from_both_files(folder):
    edit_config(folder, eos_token_id=2)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 2, 9]}')
    assert open_model(folder).config.eos_token_ids == (7, 2, 9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, r"'mamba'.*not supported. Supported: llama, .*gemma3"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, r"rope_type = 'longrope'.*yarn"),
        ({"hidden_act": "relu"}, r"hidden_act = 'relu'.*silu"),
        ({"hidden_size": "64"}, r"'hidden_size' must be a whole number, found '64'"),
        ({"hidden_size": -64}, r"'hidden_size' must be at least 1, found -64"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers = 10+ is not supported"),
        ({"num_hidden_layers": "drop"}, r"'num_hidden_layers' is missing"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads = 3"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config"),
        ({"rms_norm_eps": []}, r"'rms_norm_eps' must be a number"),
    ],
)
def test_configurations_that_are_refused(folder, changes, says):
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=says):
        open_model(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__norm__weight": None}, r"'model\.norm\.weight' is missing, expected shape \[64\]"),
        ({"model__norm__weight": torch.ones(65)}, r"'model\.norm\.weight' has shape \[65\], expected \[64\]"),
        ({"model__surprise": torch.ones(1)}, r"'model\.surprise' is not part of a llama model"),
    ],
)
def test_tensors_that_do_not_fit(folder, changes, says):
    edit_tensors(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=says):
        tiny.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: truncated"):
        open_model(folder)


def test_header_that_is_not_json(folder):
    (folder / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"hello" + bytes(100))
    with pytest.raises(UnsupportedModelError, match="header is not JSON"):
        open_model(folder)


def test_index_that_names_an_absent_file(folder):
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        open_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100_000])
def test_broken_json(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UnsupportedModelError, match=r"config\.json: (not valid JSON|expected a JSON object)"):
        open_model(folder)


def test_folders_without_a_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"neither config\.json nor a GGUF file"):
        open_model(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no such file"):
        open_model(tmp_path / "absent")


def test_weights_in_pickles_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"no \*\.safetensors file \(pytorch_model\.bin found\)"):
        open_model(folder)


def test_bfloat16_files_load_into_fp32(llama, tmp_path):
    AutoModelForCausalLM.from_config(llama.config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert PagedRunner(tiny.load(tmp_path), 1, 4).hidden({0: [1, 2, 3]}).dtype is torch.float32


def test_adapter_targets_have_peft_names(folder):
    paths = {target.path for target in tiny.load(folder).linears()}
    attention = {f"self_attn.{part}_proj" for part in "qkvo"}
    assert paths == attention | {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
