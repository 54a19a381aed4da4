"""GGUF files: every type of quantisation, every family's layout, and the errors of broken ones."""

import contextlib
import random

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gemma3 import Gemma3TextConfig

from harmonia.errors import UnsupportedModelError
from harmonia.models import load_decoder, open_model
from harmonia.models.gguf import open_gguf
from harmonia.models.gguf_tensors import SUPPORTED_TYPES, GgufTensors
from tests.unit.models import tiny
from tests.unit.models.gguf_files import add_sizes, finish, write_model
from tests.unit.models.paged import PagedRunner

TYPES = gguf.GGMLQuantizationType
ROWS, COLUMNS = 24, 512


def quantised(kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Rows of random values; for types that the library cannot write, random blocks with sane scales."""
    generator = np.random.default_rng(kind)
    if kind in (TYPES.Q4_K, TYPES.Q5_K, TYPES.Q6_K):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = generator.integers(0, 256, (ROWS * COLUMNS // block, size), dtype=np.uint8)
        scales = generator.normal(size=(len(blocks), 2)).astype(np.float16).view(np.uint8).reshape(len(blocks), 4)
        if kind == TYPES.Q6_K:
            blocks[:, -2:] = scales[:, :2]
        else:
            blocks[:, :4] = scales
        return blocks.reshape(ROWS, -1)
    values = generator.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return gguf.quants.quantize(values, kind)


@pytest.fixture(scope="module")
def llama_config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny.reference_model("llama").save_pretrained(folder)
    return open_model(folder).config


@pytest.mark.parametrize("kind", [kind.name for kind in SUPPORTED_TYPES])
def test_dequantised_in_chunks_as_the_library_does_it_whole(kind, tmp_path, llama_config):
    data = quantised(TYPES[kind])
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=TYPES[kind])
    finish(writer)
    reader = GgufTensors(open_gguf(tmp_path / "a.gguf"), llama_config, chunk_items=5 * COLUMNS)
    pieces = list(reader.read("model.layers.0.mlp.up_proj.weight"))
    assert [len(piece) for piece in pieces] == [5, 5, 5, 5, 4]
    expected = gguf.quants.dequantize(data, TYPES[kind])
    assert torch.equal(torch.cat(pieces), torch.from_numpy(expected.astype(np.float32)))


def gemma():
    sizes = tiny.SIZES | {"num_hidden_layers": 7}
    return Gemma3TextConfig(**sizes, sliding_window=5, query_pre_attn_scalar=16, tie_word_embeddings=True)


MODELS = {
    "llama": tiny.CONFIGS["llama"],
    "llama-tied-bias": tiny.CONFIGS["llama-tied-bias"],
    "qwen2": tiny.CONFIGS["qwen2"],
    "qwen2-yarn": tiny.CONFIGS["qwen2-yarn"],
    "qwen3": tiny.CONFIGS["qwen3"],
    "qwen3_moe": tiny.CONFIGS["qwen3_moe"],
    "gemma3": gemma,
}


def difference(path, model) -> float:
    ids = random.Random(0).choices(range(tiny.VOCAB), k=48)
    decoder = load_decoder(open_model(path), tiny.FP32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    return float((PagedRunner(decoder, 1, 48).logits({0: ids})[0] - expected).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_whole_model(name, tmp_path):
    torch.manual_seed(1)
    config = MODELS[name]()
    if name == "llama-tied-bias":
        config.mlp_bias = config.attention_bias = False
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    write_model(tmp_path / "model.gguf", model)
    assert difference(tmp_path / "model.gguf", model) <= 1e-4


def test_llama3_scaling_is_stored_as_divisors(tmp_path):
    model = tiny.reference_model("llama-llama3")
    plain = 1.0 / 1e4 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)
    divisors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    write_model(tmp_path / "model.gguf", model, divisors)
    assert difference(tmp_path / "model.gguf", model) <= 1e-4


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_model(path, tiny.reference_model("llama"))
    return path


def test_a_folder_with_one_file_is_that_file(good_file):
    assert open_model(good_file.parent).gguf_path == good_file


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.999])
def test_truncated(good_file, tmp_path, share):
    data = good_file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnsupportedModelError, match=r"cut\.gguf.*(truncated|GGUF)"):
        open_model(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("at", "data", "says"),
    [
        (0, b"GGML", "neither a model folder nor a GGUF file"),
        (4, b"\x09", "version 9 is not supported"),
        (8, b"\xff" * 8, "truncated|unknown type"),
        (16, b"\xff" * 8, "truncated|damaged|unknown type"),
    ],
)
def test_damaged_header(good_file, tmp_path, at, data, says):
    content = bytearray(good_file.read_bytes())
    content[at : at + len(data)] = data
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=says):
        open_model(tmp_path / "bad.gguf")


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_is_an_error_or_harmless(good_file, tmp_path, seed):
    generator = random.Random(seed)
    content = bytearray(good_file.read_bytes())
    for _ in range(20):
        content[generator.randrange(6000)] = generator.randrange(256)
    (tmp_path / "bad.gguf").write_bytes(content)
    with contextlib.suppress(UnsupportedModelError):
        open_model(tmp_path / "bad.gguf")


def small_file(path, tensors, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "llama":
        add_sizes(writer, tiny.CONFIGS["llama"]())
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    finish(writer)
    return path


def test_unknown_architecture(tmp_path):
    path = small_file(tmp_path / "a.gguf", {}, architecture="mamba")
    with pytest.raises(UnsupportedModelError, match=r"'mamba' is not supported.*llama.*gemma3"):
        open_model(path)


def test_one_of_several_files(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint16("split.count", 3)
    finish(writer)
    with pytest.raises(UnsupportedModelError, match=r"split\.count = 3 is not supported"):
        open_model(tmp_path / "a.gguf")


def test_type_that_cannot_be_read(tmp_path):
    embedding = np.zeros((tiny.VOCAB, 256 // 256 * 84), dtype=np.uint8)
    path = small_file(tmp_path / "a.gguf", {"token_embd.weight": (embedding, TYPES.Q2_K)})
    with pytest.raises(UnsupportedModelError, match=r"'token_embd\.weight' is of type Q2_K. Supported: F32.*Q6_K"):
        load_decoder(open_model(path), tiny.FP32)


def test_missing_tensor(tmp_path):
    embedding = np.zeros((tiny.VOCAB, 64), dtype=np.float32)
    path = small_file(tmp_path / "a.gguf", {"token_embd.weight": (embedding, TYPES.F32)})
    with pytest.raises(UnsupportedModelError, match=r"'model\.layers\.0\.input_layernorm\.weight' is missing"):
        load_decoder(open_model(path), tiny.FP32)
