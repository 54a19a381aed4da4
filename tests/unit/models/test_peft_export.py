"""Adapters that were saved open in PEFT with the same effect, read back bit for bit, and are refused by other bases."""

import json
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from harmonia.errors import InvalidRequestError, UnsupportedModelError
from harmonia.layers.adapters import LoraMatrices
from harmonia.models import open_model
from harmonia.models.adaptive_info import AdaptiveInfo, read_info
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from harmonia.models.peft import language_matrices, read_saved_adapter, require_base, write_adapter
from harmonia.models.source import adapter_base
from tests.unit.models import tiny

IDS = torch.tensor([random.Random(7).choices(range(tiny.VOCAB), k=20)])
FAMILIES = ["llama", "mistral-window", "qwen2", "qwen3", "qwen3_moe", "gemma3"]


def random_adapter(decoder: Decoder, seed: int = 0) -> dict[str, LoraMatrices]:
    """Ranks and scales that differ by module; some modules left out, as a target set does."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for index, target in enumerate(decoder.linears()):
        if target.part == "v_proj" and target.layer == 1:
            continue
        rank = [4, 4, 4, 2, 7][index % 5]
        a_rK = torch.randn(rank, target.linear.num_in, generator=generator) * 0.3
        b_rN = torch.randn(rank, target.linear.part(target.part).size, generator=generator) * 0.3
        alpha = [8, 8, 3, 8][index % 4]
        adapter[f"model.layers.{target.layer}.{target.path}"] = LoraMatrices(a_rK, b_rN.T, alpha / rank)
    return adapter


def with_change(model: PreTrainedModel, adapter: dict[str, LoraMatrices]) -> PreTrainedModel:
    """The model with W + scale * B A written into its weights."""
    with torch.no_grad():
        for path, lora in adapter.items():
            model.get_submodule(path).weight += lora.scale * lora.b_Nr @ lora.a_rK
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def saved_base(name: str, folder: Path) -> Path:
    tiny.reference_model(name).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path):
    return saved_base("llama", tmp_path / "base")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter").mkdir()
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_opens_it(name, tmp_path, folder):
    path = saved_base(name, tmp_path / "base")
    adapter = random_adapter(tiny.load(path))
    write_adapter(folder, adapter, str(path), source=open_model(path))
    model = AutoModelForCausalLM.from_pretrained(path)
    opened = PeftModel.from_pretrained(model, folder)
    changed = {
        module.removeprefix("base_model.model.") for module, found in opened.named_modules() if hasattr(found, "lora_A")
    }
    assert changed == set(adapter)
    expected = logits(with_change(AutoModelForCausalLM.from_pretrained(path), adapter))
    assert float((logits(opened) - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_opens_a_scoring_adapter(name, tmp_path, folder):
    path = saved_base(name, tmp_path / "base")
    adapter, head = random_adapter(tiny.load(path)), torch.randn(64)
    write_adapter(folder, adapter, str(path), head)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    opened = PeftModel.from_pretrained(model, folder)
    expected = with_change(AutoModelForSequenceClassification.from_pretrained(path, num_labels=1), adapter)
    with torch.no_grad():
        expected.score.weight.copy_(head[None])
    assert logits(opened).shape == (1, 1)
    assert float((logits(opened) - logits(expected)).abs().max()) <= 1e-4


def test_everything_reads_back_bit_for_bit(base, folder):
    adapter, head = random_adapter(tiny.load(base)), torch.randn(1, 64)
    info = AdaptiveInfo(
        kind="adapter", parent="judge-1", draft_target="big", num_draft_steps=4, defaults={"temperature": 0.5}
    )
    write_adapter(folder, adapter, "model_registry://base", head, source=open_model(base), info=info)
    saved = read_saved_adapter(folder, max_rank=8)
    assert saved.matrices.keys() == adapter.keys()
    for path, lora in saved.matrices.items():
        assert torch.equal(lora.a_rK, adapter[path].a_rK) and torch.equal(lora.b_Nr, adapter[path].b_Nr)
        assert lora.scale == adapter[path].scale
    assert torch.equal(saved.scalar_head, head)
    assert saved.info == read_info(folder)
    expected = msgspec.structs.replace(info, base="model_registry://base", scalar_head=True)
    assert msgspec.structs.replace(saved.info, base_geometry=None) == expected
    assert (adapter_base(folder), adapter_base(base)) == ("model_registry://base", None)
    with pytest.raises(InvalidRequestError, match=r"holds a scalar head.*into_scoring_model"):
        language_matrices(folder, saved)
    with pytest.raises(
        UnsupportedModelError, match="an adapter, not a whole model; open its base 'model_registry://base'"
    ):
        open_model(folder)


def test_scales_of_rank_stabilised_adapters(base, folder):
    adapter = {path: replace(lora, scale=16 / 7**0.5) for path, lora in random_adapter(tiny.load(base)).items()}
    write_adapter(folder, adapter, str(base))
    scales = [lora.scale for lora in read_saved_adapter(folder, max_rank=8).matrices.values()]
    assert scales == pytest.approx([16 / 7**0.5] * len(scales), rel=1e-15)


def test_scoring_adapters_that_peft_saved(base, folder):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    peft_model = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"]))
    peft_model.save_pretrained(folder)
    saved = read_saved_adapter(folder, max_rank=8)
    assert torch.equal(saved.scalar_head, peft_model.base_model.model.score.modules_to_save["default"].weight)
    assert len(saved.matrices) == 3
    assert saved.info is None
    require_base(folder, saved, tiny.load(base), "here")


def test_heads_that_do_not_score(base, folder):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(folder)
    with pytest.raises(InvalidRequestError, match=r"its head has shape \[3, 64\]"):
        read_saved_adapter(folder, max_rank=8)


def test_a_head_that_is_listed_and_missing(base, folder):
    write_adapter(folder, random_adapter(tiny.load(base)), str(base))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": ["score"]}))
    with pytest.raises(InvalidRequestError, match="lists 'score' in modules_to_save, its tensor is missing"):
        read_saved_adapter(folder, max_rank=8)


def refused(folder: Path, decoder: Decoder) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        require_base(folder, read_saved_adapter(folder, max_rank=8), decoder, "the-loaded-one")
    return str(caught.value)


def test_an_adapter_of_a_model_with_more_layers(base, folder, tmp_path):
    write_adapter(folder, random_adapter(tiny.load(base)), "bases/deep", source=open_model(base))
    config = msgspec.structs.replace(open_model(base).config, num_layers=2, windows=(0, 0))
    message = refused(folder, build_decoder(config, tiny.FP32))
    assert "is an adapter of bases/deep (llama, 3 layers of 64, vocabulary 96)" in message
    assert "does not fit the-loaded-one (llama, 2 layers of 64, vocabulary 96)" in message
    assert "it changes 'model.layers.2.mlp.down_proj', which this model does not have" in message


def test_an_adapter_of_another_width_without_our_notes(base, folder, tmp_path):
    write_adapter(folder, random_adapter(tiny.load(base)), "someone/wide")
    (folder / "adaptive_info.json").unlink()
    config = msgspec.structs.replace(open_model(base).config, intermediate_size=80)
    message = refused(folder, build_decoder(config, tiny.FP32))
    assert "is an adapter of someone/wide and does not fit the-loaded-one" in message
    assert "'model.layers.0.mlp.down_proj' from 112 to 64 features, here from 80 to 64" in message


def test_an_adapter_of_another_family_of_the_same_shapes(base, folder, tmp_path):
    write_adapter(folder, random_adapter(tiny.load(base)), "a-llama", source=open_model(base))
    message = refused(folder, tiny.load(saved_base("qwen3", tmp_path / "other")))
    assert "a-llama (llama, 3 layers" in message and "(qwen3, 3 layers" in message
    assert "the architectures differ" in message
    for fitting in (base, saved_base("mistral-window", tmp_path / "a-llama-in-gguf")):
        require_base(folder, read_saved_adapter(folder, max_rank=8), tiny.load(fitting), "fits")


def test_broken_notes_are_named(base, folder):
    write_adapter(folder, random_adapter(tiny.load(base)), str(base))
    (folder / "adaptive_info.json").write_text('{"kind": "piano"}')
    with pytest.raises(UnsupportedModelError, match=r"adaptive_info\.json is broken: Invalid enum value 'piano'"):
        read_saved_adapter(folder, max_rank=8)
