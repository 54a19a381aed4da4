"""Text to tokens and back, as a model's files say. Importable without torch: it runs in the worker's I/O process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from harmonia.errors import InvalidRequestError, UnsupportedModelError
from harmonia.models.chat_template import ChatTemplate
from harmonia.models.fields import Fields, read_json, read_optional_json
from harmonia.models.gguf import GgufFile
from harmonia.models.gguf_tokenizer import gguf_tokenizer
from harmonia.models.source import ModelSource
from harmonia.models.token_bytes import token_bytes_table

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ModelTokenizer:
    """One model's tokenizer and chat template."""

    backend: Tokenizer
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token` and the like, as chat templates see them."""
    prefix_ids: tuple[int, ...]
    """What `encode` puts before a text when asked for special tokens: begin of text, for models that want it."""
    suffix_ids: tuple[int, ...]
    """What it puts after; for most models nothing."""
    eos_ids: tuple[int, ...]
    """Tokens that end a generation."""
    chat_template: ChatTemplate | None
    """None for models that were not made to chat."""

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Token ids; `add_special` puts begin of text before them if the model wants that.

        Special tokens that the text spells out become those tokens, as chat templates need.
        Errors: InvalidRequestError for text that is not Unicode (half of a surrogate pair).
        """
        _check_unicode(text)
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_special else ids

    def encode_batch(self, texts: Sequence[str], add_special: bool) -> list[list[int]]:
        """As `encode`, for several texts, in parallel where the library is allowed to."""
        for text in texts:
            _check_unicode(text)
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        prefix, suffix = (self.prefix_ids, self.suffix_ids) if add_special else ((), ())
        return [[*prefix, *encoding.ids, *suffix] for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of these tokens; bytes that are not UTF-8 become replacement characters."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token; empty for ids that the tokenizer does not know."""
        table = self._bytes
        return table[token_id] if 0 <= token_id < len(table) else b""

    @property
    def vocab_size(self) -> int:
        """Highest token id plus one. The model's own vocabulary may be padded beyond it."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int | None:
        """Begin of text, if the tokenizer has one."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's end of text, if it has one."""
        return self._named_id("eos_token")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are not text, such as ends of turns."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return token_bytes_table(self.backend)

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        index: int | None = None if token is None else self.backend.token_to_id(token)
        return index


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        message = f"the text is not valid Unicode: {found!r} at position {error.start}"
        raise InvalidRequestError(message) from error


def load_tokenizer(source: ModelSource) -> ModelTokenizer:
    """The tokenizer of an opened model. Errors: UnsupportedModelError naming the file and what is wrong with it."""
    if isinstance(source.files, GgufFile):
        return _from_gguf(source.files, source.config.eos_token_ids)
    return _from_folder(source.path, source.config.eos_token_ids)


def _from_gguf(file: GgufFile, eos_ids: tuple[int, ...]) -> ModelTokenizer:
    parts = gguf_tokenizer(file)
    bos = parts.special_tokens.get("bos_token") if parts.add_bos else None
    eos = parts.special_tokens.get("eos_token") if parts.add_eos else None
    around = (_ids(parts.backend, bos), _ids(parts.backend, eos))
    return _assemble(parts.backend, parts.special_tokens, around, eos_ids, parts.chat_templates)


def _from_folder(folder: Path, eos_ids: tuple[int, ...]) -> ModelTokenizer:
    settings = read_optional_json(folder / "tokenizer_config.json")
    backend = _backend(folder)
    backend.no_truncation()
    backend.no_padding()
    special = _special_tokens(settings, read_optional_json(folder / "special_tokens_map.json"))
    around = _around(backend, settings, special)
    return _assemble(backend, special, around, eos_ids, _template_sources(folder, settings))


def _assemble(
    backend: Tokenizer,
    special: dict[str, str],
    around: tuple[tuple[int, ...], tuple[int, ...]],
    eos_ids: tuple[int, ...],
    templates: dict[str, str],
) -> ModelTokenizer:
    ends = (*eos_ids, *_ids(backend, special.get("eos_token")))
    template = ChatTemplate(templates, special) if "default" in templates else None
    return ModelTokenizer(backend, special, *around, tuple(dict.fromkeys(ends)), template)


def _ids(backend: Tokenizer, token: str | None) -> tuple[int, ...]:
    index = None if token is None else backend.token_to_id(token)
    return () if index is None else (index,)


def _backend(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if file.exists():
        try:
            return Tokenizer.from_file(str(file))
        # The library raises bare Exception.
        except Exception as error:
            raise UnsupportedModelError(f"{file}: not a tokenizer ({error})", file=str(file)) from error
    if not any((folder / name).exists() for name in ("tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise UnsupportedModelError(f"{folder}: no tokenizer.json", file=str(file))
    # Only old folders need transformers' converters, and importing it takes seconds.
    from transformers import AutoTokenizer

    try:
        backend: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        message = f"{folder}: no tokenizer.json, and its other tokenizer files cannot be converted ({error})"
        raise UnsupportedModelError(message, file=str(file)) from error
    return backend


def _special_tokens(*files: Fields) -> dict[str, str]:
    special: dict[str, str] = {}
    for fields in files:
        for name in _SPECIAL_NAMES:
            value = fields.values.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                special.setdefault(name, content)
    return special


def _around(backend: Tokenizer, settings: Fields, special: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after a text: by the flags if there are any, else as the post-processor does it."""
    bare: list[int] = backend.encode("a", add_special_tokens=False).ids
    full: list[int] = backend.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    if settings.has("add_bos_token") or settings.has("add_eos_token"):
        prefix = _ids(backend, special.get("bos_token")) if settings.flag("add_bos_token", False) else ()
        suffix = _ids(backend, special.get("eos_token")) if settings.flag("add_eos_token", False) else ()
    return prefix, suffix


def _template_sources(folder: Path, settings: Fields) -> dict[str, str]:
    """By name; files take precedence over the settings, as in transformers."""
    sources: dict[str, str] = {}
    stored = settings.values.get("chat_template")
    if isinstance(stored, str):
        sources["default"] = stored
    elif isinstance(stored, list):
        named = [Fields(entry, settings.origin) for entry in stored if isinstance(entry, dict)]
        sources |= {entry.text("name"): entry.text("template") for entry in named}
    old = folder / "chat_template.json"
    if old.exists():
        sources["default"] = read_json(old).text("chat_template")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        sources[file.stem] = file.read_text(encoding="utf-8")
    single = folder / "chat_template.jinja"
    if single.exists():
        sources["default"] = single.read_text(encoding="utf-8")
    return sources


def tokenizer_difference(one: ModelTokenizer, other: ModelTokenizer) -> str | None:
    """The first way in which two tokenizers differ, where a token of one would mean something else to the other."""
    if one.vocab_size != other.vocab_size:
        return f"{one.vocab_size} and {other.vocab_size} tokens"
    for index in range(one.vocab_size):
        texts = one.backend.id_to_token(index), other.backend.id_to_token(index)
        if texts[0] != texts[1]:
            return f"token {index} is {texts[0]!r} and {texts[1]!r}"
    return None
