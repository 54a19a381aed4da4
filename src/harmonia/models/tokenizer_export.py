"""Tokenizer files of a saved model: copied from a folder, or made from what a GGUF file holds. Imports no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from harmonia.models.gguf import GgufFile
from harmonia.models.gguf_config import gguf_model_config
from harmonia.models.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from harmonia.models.source import ModelSource

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
_TEMPLATES = "additional_chat_templates"


def tokenizer_files(source: ModelSource) -> list[Path]:
    """Those of a folder; none for a GGUF file."""
    folder = source.tokenizer_dir
    if folder is None:
        return []
    return [*(folder / name for name in _FILES if (folder / name).is_file()), *folder.glob(f"{_TEMPLATES}/*.jinja")]


def write_tokenizer(folder: Path, source: ModelSource) -> None:
    """Write what `AutoTokenizer.from_pretrained` and `load_tokenizer` need. Errors: OSError."""
    if isinstance(source.files, GgufFile):
        _write_gguf_tokenizer(folder, source.files)
        return
    for file in tokenizer_files(source):
        target = folder / file.relative_to(source.path)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def _write_gguf_tokenizer(folder: Path, file: GgufFile) -> None:
    parts = gguf_tokenizer(file)
    _surround(parts)
    (folder / "tokenizer.json").write_text(parts.backend.to_str(pretty=False), encoding="utf-8")
    settings: dict[str, object] = {
        # By this name transformers takes tokenizer.json as it is, whatever the model's family.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf_model_config(file).max_seq_len,
        "add_bos_token": parts.add_bos,
        "add_eos_token": parts.add_eos,
        **parts.special_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
    for name, template in parts.chat_templates.items():
        target = folder / "chat_template.jinja" if name == "default" else folder / _TEMPLATES / f"{name}.jinja"
        target.parent.mkdir(exist_ok=True)
        target.write_text(template, encoding="utf-8")


def _surround(parts: GgufTokenizer) -> None:
    """Let the tokenizer put begin and end of text around by itself."""
    names = {"bos_token": parts.add_bos, "eos_token": parts.add_eos}
    used = {
        name: parts.special_tokens[name] for name, wanted in names.items() if wanted and name in parts.special_tokens
    }
    if not used:
        return
    single = [*([used["bos_token"]] if "bos_token" in used else []), "$A"]
    single += [used["eos_token"]] if "eos_token" in used else []
    pair = [piece if piece != "$A" else "$B" for piece in single]
    ids = [(token, _id(parts.backend, token)) for token in dict.fromkeys(used.values())]
    parts.backend.post_processor = TemplateProcessing(
        single=single, pair=[*single, *(f"{p}:1" for p in pair)], special_tokens=ids
    )


def _id(backend: Tokenizer, token: str) -> int:
    index = backend.token_to_id(token)
    assert index is not None, "special tokens come from the vocabulary"
    return index
