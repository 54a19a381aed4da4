"""Weights that are exact in bf16 take half on a CPU, and the plan knows it before it loads them."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harmonia.errors import InvalidRequestError
from harmonia.models import load_decoder, open_model, sizes
from harmonia.models.exact import exact_weights
from tests.unit.models.tiny import FP32


def saved(folder, dtype: torch.dtype, *, tied: bool):
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return open_model(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_planned_weights_are_the_loaded_ones(tmp_path, dtype, tied):
    source = saved(tmp_path, dtype, tied=tied)
    loaded: dict[str, int] = {}
    for kind, storage in load_decoder(source, FP32).storages():
        loaded[kind] = loaded.get(kind, 0) + storage.num_bytes
    assert sizes.weight_bytes(source.config, FP32, exact_weights(source)) == loaded


def test_only_what_loses_nothing_counts_as_exact(tmp_path):
    (tmp_path / "narrow").mkdir()
    (tmp_path / "wide").mkdir()
    narrow, wide = (
        saved(tmp_path / name, dtype, tied=True)
        for name, dtype in (("narrow", torch.bfloat16), ("wide", torch.float32))
    )
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"} <= exact_weights(narrow)
    assert not exact_weights(wide)


def test_a_quantised_file_is_not_exact(smollm2):
    assert not exact_weights(open_model(smollm2))


def test_an_unknown_target_names_those_that_exist(tmp_path):
    config = saved(tmp_path, torch.float32, tied=True).config
    with pytest.raises(InvalidRequestError, match="'q_porj'; it has down_proj, gate_proj"):
        sizes.lora_parameters(config, ("q_porj",))
    assert sizes.lora_parameters(config, ("q_proj",)) == 2 * (64 + 64)
