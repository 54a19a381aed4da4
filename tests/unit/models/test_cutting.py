"""Models cut down to some layers: as transformers computes these layers, from both kinds of files, and saved."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from harmonia.errors import InvalidRequestError
from harmonia.models import load_decoder, open_model
from harmonia.models.export import write_model
from harmonia.models.gguf import GgufFile
from harmonia.models.gguf_tensors import GgufTensors
from harmonia.models.safetensors_reader import SafetensorsReader
from harmonia.models.source import ModelSource
from tests.unit.models import tiny
from tests.unit.models.gguf_files import write_model as write_gguf
from tests.unit.models.paged import PagedRunner
from tests.unit.models.test_export import IDS, logits_in_transformers

LAYERS = (0, 2)
GGUF = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3"]


def transformers_logits(model: PreTrainedModel, layers: tuple[int, ...]) -> torch.Tensor:
    smaller = copy.deepcopy(model)
    smaller.model.layers = nn.ModuleList(smaller.model.layers[layer] for layer in layers)
    smaller.config.num_hidden_layers = len(layers)
    if getattr(smaller.config, "layer_types", None):
        smaller.config.layer_types = [smaller.config.layer_types[layer] for layer in layers]
    with torch.inference_mode():
        return smaller(torch.tensor([IDS]), use_cache=False).logits[0]


def our_logits(source: ModelSource) -> torch.Tensor:
    return PagedRunner(load_decoder(source, tiny.FP32), 1, len(IDS)).logits({0: IDS})[0]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_family(name: str, tmp_path: Path) -> None:
    model = tiny.reference_model(name)
    model.save_pretrained(tmp_path / "whole", max_shard_size="100KB")
    source = open_model(tmp_path / "whole").cut(LAYERS)
    expected = transformers_logits(model, LAYERS)
    assert difference(our_logits(source), expected) <= 1e-4

    (tmp_path / "cut").mkdir()
    write_model(tmp_path / "cut", source, load_decoder(source, tiny.FP32))
    assert difference(logits_in_transformers(tmp_path / "cut"), expected) <= 1e-4
    assert open_model(tmp_path / "cut").config.windows == source.config.windows
    assert difference(our_logits(open_model(tmp_path / "cut")), expected) <= 1e-4


@pytest.mark.parametrize("name", GGUF)
def test_gguf_files(name: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", tiny.reference_model(name))
    whole = open_model(tmp_path / "whole.gguf")
    source = whole.cut((1, 2))
    assert source.config.windows == whole.config.windows[1:]

    (tmp_path / "cut").mkdir()
    write_model(tmp_path / "cut", source, load_decoder(source, tiny.FP32))
    saved = open_model(tmp_path / "cut")
    assert (saved.config.num_layers, saved.config.windows) == (2, source.config.windows)
    assert difference(our_logits(saved), our_logits(source)) <= 1e-6
    assert difference(logits_in_transformers(tmp_path / "cut"), our_logits(source)) <= 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "cut").chat_template


def test_only_tensors_that_are_kept_are_read(tmp_path: Path) -> None:
    tiny.reference_model("llama").save_pretrained(tmp_path)
    source = open_model(tmp_path).cut((1,))
    assert not isinstance(source.files, GgufFile)
    stored = {entry.stored_name for entry in source.files.entries.values()}
    assert not any(".layers.0." in name or ".layers.2." in name for name in stored)
    assert len(SafetensorsReader(source.files).shapes()) == len(stored)


def test_only_tensors_of_a_gguf_file_that_are_kept(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", tiny.reference_model("qwen3"))
    source = open_model(tmp_path / "a.gguf").cut((2,))
    assert isinstance(source.files, GgufFile)
    names = GgufTensors(source.files, source.config, 100).shapes()
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0"}


def test_the_length_of_a_run_is_not_saved(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", tiny.reference_model("llama"))
    source = open_model(tmp_path / "a.gguf").limited(16).cut((0, 1))
    write_model(tmp_path, source, load_decoder(source, tiny.FP32))
    assert open_model(tmp_path).config.max_seq_len == tiny.SIZES["max_position_embeddings"]


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ((), "is empty; name at least one layer"),
        ((0, 3), "names layer 3; this model's are 0 to 2"),
        ((-1, 1), "names layer -1; this model's are 0 to 2"),
        ((1, 1), "must rise"),
        ((2, 0), "must rise"),
    ],
)
def test_layers_that_cannot_be_kept(layers: tuple[int, ...], says: str, tmp_path: Path) -> None:
    tiny.reference_model("llama").save_pretrained(tmp_path)
    with pytest.raises(InvalidRequestError, match=says) as caught:
        open_model(tmp_path).cut(layers)
    assert caught.value.details["field"] == "keep_layers"
