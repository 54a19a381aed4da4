"""Which files of a model on the hub are fetched."""

from __future__ import annotations

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.fleet.hub import HubFile, split_id, wanted

BESIDE = {"config.json", "generation_config.json", "tokenizer.json", "merges.txt", "tokenizer.model", "LICENSE"}
NEVER = {"pytorch_model.bin", "modeling.py", "model.pt", "tf_model.h5", "rust_model.ot", "README.md", ".gitattributes"}


def names(*offered: str, gguf: str | None = None) -> set[str]:
    files = [HubFile(name, 1, "") for name in offered]
    return {file.name for file in wanted("a/b", files, gguf)}


@pytest.mark.parametrize(
    "weights",
    [
        {"model.safetensors"},
        {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"},
        {"adapter_model.safetensors", "adapter_config.json"},
        {"weights.safetensors"},
    ],
)
def test_weights_and_what_is_read_with_them(weights: set[str]) -> None:
    template = "additional_chat_templates/tool_use.jinja"
    assert names(*weights, *BESIDE, *NEVER, template) == weights | BESIDE | {template}


def test_the_same_weights_do_not_come_twice() -> None:
    twice = ("consolidated.safetensors", "original/model.safetensors", "metal/model.bin", "b.Q4_0.gguf")
    assert names("model.safetensors", *twice) == {"model.safetensors"}


def test_one_gguf_file_comes_alone() -> None:
    assert names("b.Q4_0.gguf", "config.json") == {"b.Q4_0.gguf"}
    assert names("b.Q4_0.gguf", "b.Q8_0.gguf", gguf="b.Q8_0.gguf") == {"b.Q8_0.gguf"}
    with pytest.raises(InvalidRequestError, match=r"a/b/FILE. It has b.Q4_0.gguf, b.Q8_0.gguf"):
        names("b.Q8_0.gguf", "b.Q4_0.gguf")
    with pytest.raises(InvalidRequestError, match="no such GGUF file"):
        names("model.safetensors", gguf="model.safetensors")


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "a/../b.safetensors", ".x.safetensors"])
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="neither safetensors nor GGUF"):
        names(name, "pytorch_model.bin")


def test_ids_name_a_model_or_a_file_of_it() -> None:
    assert split_id("gpt2") == ("gpt2", None)
    assert split_id("a/b") == ("a/b", None)
    assert split_id("a/b/c.gguf") == ("a/b", "c.gguf")
