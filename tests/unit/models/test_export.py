"""Whole models that were saved open in transformers and in Harmonia and give the same logits, of every family."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.gemma3 import Gemma3Config

from harmonia.errors import UnsupportedModelError
from harmonia.layers.linear import WeightFormat
from harmonia.models import load_decoder, open_model
from harmonia.models.checkpoint import SafetensorsFolder
from harmonia.models.config_export import config_values, described
from harmonia.models.export import model_bytes, read_parameter, read_scalar_head, write_model
from harmonia.models.fields import Fields
from harmonia.models.hf_config import parse_config
from harmonia.models.tokenizer import load_tokenizer
from harmonia.models.tokenizer_export import write_tokenizer
from tests.unit.models import tiny
from tests.unit.models.gguf_files import TEMPLATE
from tests.unit.models.gguf_files import write_model as write_gguf
from tests.unit.models.paged import PagedRunner
from tests.unit.models.test_tokenizer import sentencepiece_file

IDS = random.Random(7).choices(range(tiny.VOCAB), k=40)
GGUF = ["llama", "qwen2", "qwen2-yarn", "qwen3", "qwen3_moe", "gemma3"]
SMALL_SHARDS = 150_000


def logits_of(folder: Path) -> torch.Tensor:
    return PagedRunner(load_decoder(open_model(folder), tiny.FP32), 1, len(IDS)).logits({0: IDS})[0]


def logits_in_transformers(folder: Path) -> torch.Tensor:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) <= {"score.weight"}
    with torch.inference_mode():
        return model.eval()(torch.tensor([IDS])).logits[0]


def export(folder: Path, source: Path, **options: object) -> Path:
    folder.mkdir()
    opened = open_model(source)
    write_model(folder, opened, load_decoder(opened, tiny.FP32), **options)
    return folder


@pytest.fixture(params=tiny.CONFIGS)
def saved(request, tmp_path):
    model = tiny.reference_model(request.param)
    model.save_pretrained(tmp_path / "source")
    return model, tmp_path / "source"


def test_every_family_in_shards(saved, tmp_path):
    model, source = saved
    folder = export(tmp_path / "out", source, shard_bytes=SMALL_SHARDS)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits_of(folder), logits_of(source))
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
    assert float((logits_in_transformers(folder) - expected).abs().max()) <= 1e-5


def test_every_parameter_reads_back(saved):
    _, source = saved
    decoder = tiny.load(source)
    stored = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for parameter in decoder.parameters():
        read = read_parameter(decoder, parameter.name)
        assert torch.allclose(read, stored[parameter.name], rtol=0, atol=2e-7), parameter.name
    with pytest.raises(KeyError):
        read_parameter(decoder, "model.layers.9.norm.weight")


def test_weights_in_training_read_back(tmp_path):
    tiny.reference_model("llama").save_pretrained(tmp_path)
    decoder = tiny.load(tmp_path)
    before = {parameter.name: read_parameter(decoder, parameter.name) for parameter in decoder.parameters()}
    leaf = decoder.head.weight.require_grad()
    assert leaf.requires_grad
    with torch.no_grad():
        leaf.mul_(2)
    for name, tensor in before.items():
        read = read_parameter(decoder, name)
        assert not read.requires_grad
        assert torch.equal(read, tensor * (2 if name == "lm_head.weight" else 1))


def test_configurations_survive_description(saved):
    config = open_model(saved[1]).config
    assert parse_config(Fields(described(config), "described"), Fields({}, "")) == config


@pytest.mark.parametrize("name", GGUF)
def test_gguf_files(name, tmp_path):
    config = tiny.CONFIGS[name]()
    if name == "gemma3":
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
        config.query_pre_attn_scalar = config.head_dim
    torch.manual_seed(1)
    write_gguf(tmp_path / "model.gguf", AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    folder = export(tmp_path / "out", tmp_path / "model.gguf")
    assert torch.equal(logits_of(folder), logits_of(tmp_path / "model.gguf"))
    assert float((logits_in_transformers(folder) - logits_of(folder)).abs().max()) <= 1e-4


def test_llama3_scaling_from_divisors(tmp_path):
    model = tiny.reference_model("llama-llama3")
    plain = 1.0 / 1e4 ** (torch.arange(0, 16, 2) / 16)
    write_gguf(tmp_path / "model.gguf", model, (plain / model.model.rotary_emb.inv_freq).numpy())
    folder = export(tmp_path / "out", tmp_path / "model.gguf")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8, 32)
    assert float((logits_in_transformers(folder) - logits_of(tmp_path / "model.gguf")).abs().max()) <= 1e-4


def test_tokenizer_of_a_gguf_file(tmp_path):
    write_gguf(tmp_path / "model.gguf", tiny.reference_model("llama"))
    folder = export(tmp_path / "out", tmp_path / "model.gguf")
    ours, theirs = load_tokenizer(open_model(folder)), AutoTokenizer.from_pretrained(folder)
    original = load_tokenizer(open_model(tmp_path / "model.gguf"))
    for text in ("hello world", "<|user|>12 éé\n  x<tool>"):
        assert original.encode(text, True) == ours.encode(text, True) == theirs.encode(text)
    assert theirs.chat_template == TEMPLATE
    assert (theirs.eos_token, theirs.bos_token) == ("<|end|>", "<|user|>")
    messages = [{"role": "user", "content": "hi"}]
    assert ours.chat_template.render(messages) == theirs.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(("architecture", "spaces"), [("llama", ()), ("gemma3", ("  ", "   "))])
def test_sentencepiece_tokenizers_of_gguf_files(tmp_path, architecture, spaces):
    source = open_model(sentencepiece_file(tmp_path / "model.gguf", architecture, spaces))
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(folder, source)
    (folder / "config.json").write_text(json.dumps(config_values(source, "float32", scalar_head=False)))
    theirs, original = AutoTokenizer.from_pretrained(folder), load_tokenizer(source)
    ours = load_tokenizer(replace(source, path=folder, files=SafetensorsFolder(folder, {})))
    for text in ("hello world", "  hello  wörld\n🦜", "<s>hello</s>"):
        ids = original.encode(text, add_special=True)
        assert ids[0] == original.bos_id
        assert theirs(text)["input_ids"] == ours.encode(text, add_special=True) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == original.decode(ids)
        pair = theirs(text, text)["input_ids"]
        assert pair == [*ids, *ids]


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2", "qwen3", "qwen3_moe", "gemma3"])
def test_scoring_models(name, tmp_path):
    model = tiny.reference_model(name)
    model.save_pretrained(tmp_path / "source")
    head = torch.randn(64)
    folder = export(tmp_path / "out", tmp_path / "source", scalar_head=head)
    assert torch.equal(read_scalar_head(open_model(folder)), head[None])
    assert read_scalar_head(open_model(tmp_path / "source")) is None
    assert torch.equal(logits_of(folder), logits_of(tmp_path / "source"))
    scorer = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    runner = PagedRunner(tiny.load(folder), 1, len(IDS))
    expected = runner.hidden({0: IDS})[-1] @ head
    with torch.inference_mode():
        score = scorer(torch.tensor([IDS])).logits
    assert score.shape == (1, 1)
    assert float(abs(score[0, 0] - expected)) <= 1e-4


def test_the_text_part_of_a_model_with_vision(tmp_path):
    model = tiny.reference_model("gemma3")
    model.save_pretrained(tmp_path / "source")
    outer = json.loads(Gemma3Config(text_config=model.config).to_json_string()) | {"eos_token_id": [1, 90]}
    (tmp_path / "source" / "config.json").write_text(json.dumps(outer))
    folder = export(tmp_path / "out", tmp_path / "source")
    assert open_model(folder).config == open_model(tmp_path / "source").config
    assert torch.equal(logits_of(folder), logits_of(tmp_path / "source"))
    assert float((logits_in_transformers(folder) - logits_of(folder)).abs().max()) <= 1e-4


def test_bfloat16_stays_as_it_is(tmp_path):
    AutoModelForCausalLM.from_config(tiny.CONFIGS["qwen2"](), dtype=torch.bfloat16).save_pretrained(tmp_path / "source")
    source, folder = open_model(tmp_path / "source"), tmp_path / "out"
    folder.mkdir()
    decoder = load_decoder(source, WeightFormat(torch.bfloat16, torch.device("cpu")))
    write_model(folder, source, decoder)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype is torch.bfloat16
    old, new = load_file(tmp_path / "source" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, old[name]) for name, tensor in new.items())
    written = sum(file.stat().st_size for file in folder.iterdir())
    assert written <= model_bytes(source, decoder) <= written + (2 << 20)


def test_a_head_of_several_scores_is_refused(tmp_path):
    tiny.reference_model("llama").save_pretrained(tmp_path / "source")
    folder = export(tmp_path / "out", tmp_path / "source", scalar_head=torch.randn(65))
    with pytest.raises(UnsupportedModelError, match=r"score\.weight has shape \[1, 65\]; a scalar head has \[1, 64\]"):
        read_scalar_head(open_model(folder))
