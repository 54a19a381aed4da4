"""Tokenizers of folders and GGUF files, their bytes, and what they do around a text."""

import json
import subprocess
import sys

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from harmonia.errors import InvalidRequestError, UnsupportedModelError
from harmonia.models import open_model
from harmonia.models.tokenizer import load_tokenizer
from tests.unit.models import tiny
from tests.unit.models.gguf_files import (
    BYTE_LEVEL,
    MERGES,
    add_byte_level_tokenizer,
    add_sizes,
    finish,
    write_model,
)

TEXTS = [
    "",
    " ",
    "hello world",
    "  hello\n\n  world\t",
    "a1 22  333",
    "naïve 東京 🦜‍🔥",
    "<|user|>hello<|end|>",
    "x<tool>y",
    "\x00\x7f",
]


@pytest.fixture(scope="module")
def model():
    return tiny.reference_model("llama")


@pytest.fixture(scope="module")
def gguf_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_model(path, model)
    return path


@pytest.fixture(scope="module")
def byte_level(gguf_path):
    return load_tokenizer(open_model(gguf_path))


def byte_level_backend() -> Tokenizer:
    vocab = {token: index for index, token in enumerate(BYTE_LEVEL)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split()) for merge in MERGES]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>"), AddedToken("<|user|>")])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def settings(folder, **values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return load_tokenizer(open_model(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_gguf_is_the_same_as_the_original(byte_level, text):
    assert byte_level.encode(text, add_special=False) == byte_level_backend().encode(text).ids


# transformers does not know that SmolLM's tokenizer cuts digits out first, which shows after two or more spaces.
@pytest.mark.parametrize("text", [text for text in TEXTS if "  333" not in text])
def test_gguf_is_what_transformers_reads(byte_level, gguf_path, text):
    reference = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    assert byte_level.encode(text, add_special=False) == reference(text, add_special_tokens=False)["input_ids"]


@given(text=st.text())
def test_bytes_of_tokens_are_the_text(byte_level, text):
    ids = byte_level.encode(text, add_special=False)
    assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()
    assert byte_level.decode(ids, skip_special=False) == text


def test_ids_without_a_token_have_no_bytes(byte_level):
    assert byte_level.vocab_size == len(BYTE_LEVEL)
    assert byte_level.token_bytes(len(BYTE_LEVEL)) == byte_level.token_bytes(-1) == b""
    assert byte_level.token_bytes(0) == b"<|end|>"


def test_half_a_surrogate_pair_is_refused(byte_level):
    with pytest.raises(InvalidRequestError, match=r"not valid Unicode: .*ud83d' at position 1"):
        byte_level.encode("a\ud83d", add_special=False)


def test_special_tokens(byte_level):
    assert (byte_level.eos_id, byte_level.bos_id, byte_level.eos_ids) == (0, 1, (0,))
    assert byte_level.special_ids == {0, 1}
    assert byte_level.decode(byte_level.encode("<|user|>hello<|end|>", add_special=False)) == "hello"


def test_chat_template_of_a_gguf(byte_level):
    messages = [{"role": "user", "content": "hello"}]
    assert byte_level.chat_template.render(messages) == "<|user|>hello<|end|>"


def test_batch(byte_level):
    assert byte_level.encode_batch(TEXTS, False) == [byte_level.encode(text, False) for text in TEXTS]


def test_begin_of_text_by_flag(folder):
    tokenizer = settings(folder, bos_token="<|user|>", eos_token={"content": "<|end|>"}, add_bos_token=True)
    assert tokenizer.encode("h", add_special=True) == [1, *tokenizer.encode("h", add_special=False)]
    assert settings(folder, bos_token="<|user|>").encode("h", add_special=True)[0] != 1


def test_begin_of_text_by_post_processor(folder):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = TemplateProcessing("<|user|> $A <|end|>", special_tokens=[("<|user|>", 1), ("<|end|>", 0)])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = settings(folder)
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids) == ((1,), (0,))
    assert settings(folder, add_bos_token=False).encode("h", add_special=True)[0] != 1


def test_where_templates_come_from(folder):
    assert settings(folder).chat_template is None
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    several = settings(folder, chat_template=named).chat_template
    assert several.render([]) == "plain"
    assert several.render([], tools=[{"type": "function"}]) == "tools"
    (folder / "chat_template.jinja").write_text("from the file")
    assert settings(folder, chat_template="from the settings").chat_template.render([]) == "from the file"


def test_broken_files(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(open_model(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        load_tokenizer(open_model(folder))


SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SPM_PIECES = [
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "r",
    "d",
    "he",
    "ll",
    "hell",
    "hello",
    "▁hello",
    "▁w",
    "or",
    "▁wor",
    "▁world",
    "ld",
]


def sentencepiece_file(path, architecture="llama", spaces=()):
    pieces = [*SPM_PIECES, *spaces]
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, tiny.CONFIGS[architecture]())
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(SPM_TOKENS + pieces)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * len(pieces))
    writer.add_token_scores([0.0] * len(SPM_TOKENS) + [-float(i) for i in range(len(pieces))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    embedding = tiny.np_zeros(len(SPM_TOKENS) + len(pieces), 64)
    writer.add_tensor("token_embd.weight", embedding)
    finish(writer)
    return path


@pytest.mark.parametrize(("architecture", "spaces"), [("llama", ()), ("gemma3", ("  ", "   "))])
def test_sentencepiece_is_what_transformers_reads(tmp_path, architecture, spaces):
    path = sentencepiece_file(tmp_path / "spm.gguf", architecture, spaces)
    ours = load_tokenizer(open_model(path))
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="spm.gguf")
    for text in TEXTS:
        assert ours.encode(text, add_special=True) == reference(text)["input_ids"], text
        ids = ours.encode(text, add_special=False)
        assert b"".join(map(ours.token_bytes, ids)).decode().removeprefix(" ") == text.removeprefix(" ")


def test_unknown_kinds_of_gguf_tokenizers(model, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    add_sizes(writer, model.config)
    add_byte_level_tokenizer(writer, pre="klingon")
    writer.add_tensor("token_embd.weight", tiny.np_zeros(4, 64))
    finish(writer)
    with pytest.raises(UnsupportedModelError, match=r"'klingon' is not supported.*smollm"):
        load_tokenizer(open_model(tmp_path / "a.gguf"))


def test_damaged_merges(model, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    add_sizes(writer, model.config)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a c"])
    writer.add_tensor("token_embd.weight", tiny.np_zeros(2, 64))
    finish(writer)
    with pytest.raises(UnsupportedModelError, match=r"a\.gguf: its tokenizer is damaged"):
        load_tokenizer(open_model(tmp_path / "a.gguf"))


def test_qwen2_composes_characters(model, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    add_sizes(writer, model.config)
    add_byte_level_tokenizer(writer, pre="qwen2")
    writer.add_tensor("token_embd.weight", tiny.np_zeros(4, 64))
    finish(writer)
    tokenizer = load_tokenizer(open_model(tmp_path / "a.gguf"))
    assert tokenizer.encode("e\u0301", add_special=False) == tokenizer.encode("\u00e9", add_special=False)


def test_metaspace_tokenizer_of_a_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_PIECES]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    backend.normalizer = normalizers.Replace(Regex(" "), "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(open_model(tmp_path))
    ids = tokenizer.encode("hello wörld 🦜", add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == "hello wörld 🦜".encode()


def test_no_torch_is_imported():
    code = "import sys, harmonia.models.tokenizer; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
