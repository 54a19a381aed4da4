"""Tokenizers from GGUF metadata: byte-level BPE and SentencePiece BPE with byte fallback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from harmonia.errors import UnsupportedModelError
from harmonia.models.fields import Fields
from harmonia.models.gguf import GgufFile
from harmonia.models.token_bytes import byte_alphabet

_CONTROL, _USER_DEFINED = 3, 4
_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Splitting:
    """How a byte-level vocabulary cuts text into words before merging."""

    pattern: str | None = None
    """Regular expression of a word; None: GPT-2's."""
    single_digits: bool = False
    """Cut out every digit first."""
    unicode_nfc: bool = False
    """Compose characters first."""
    ignore_merges: bool = False
    """A word that is a token needs no merges."""
    adds_bos: bool = False
    """Begin of text is added unless the file says otherwise."""


_GPT2 = _Splitting()
_DIGITS = _Splitting(single_digits=True)
_LLAMA3 = _Splitting(_LLAMA3_SPLIT, ignore_merges=True, adds_bos=True)
_QWEN2 = _Splitting(_QWEN2_SPLIT, unicode_nfc=True)
_SPLITTINGS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "tekken": _Splitting(_TEKKEN_SPLIT, ignore_merges=True, adds_bos=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The parts of a tokenizer that a GGUF file describes."""

    backend: Tokenizer
    special_tokens: dict[str, str]
    """Such as `bos_token`, by their names in chat templates."""
    add_bos: bool
    add_eos: bool
    chat_templates: dict[str, str]
    """By name; `default` is the usual one."""


def gguf_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Build it. Errors: UnsupportedModelError for kinds of tokenizers that are not known."""
    fields = file.metadata
    tokens = fields.strings(f"{_KEY}tokens")
    if not tokens:
        raise fields.unsupported(f"{_KEY}tokens", None, "files that hold their tokenizer")
    try:
        backend, adds_bos = _backend(fields, tokens)
        _add_tokens(backend, fields, tokens)
    except UnsupportedModelError:
        raise
    # The library raises bare Exception for merges of unknown tokens.
    except Exception as error:
        message = f"{file.path}: its tokenizer is damaged ({error})"
        raise UnsupportedModelError(message, file=str(file.path)) from error
    return GgufTokenizer(
        backend=backend,
        special_tokens=_special_tokens(fields, tokens),
        add_bos=fields.flag(f"{_KEY}add_bos_token", adds_bos),
        add_eos=fields.flag(f"{_KEY}add_eos_token", False),
        chat_templates=_chat_templates(fields),
    )


def _backend(fields: Fields, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """(tokenizer, whether its kind begins texts with begin of text unless the file says otherwise)."""
    kind = fields.text(f"{_KEY}model")
    if kind == "gpt2":
        splitting = _splitting(fields)
        return _byte_level(fields, tokens, splitting), splitting.adds_bos
    if kind == "llama":
        is_gemma = fields.text("general.architecture").startswith("gemma")
        return (_gemma if is_gemma else _llama)(fields, tokens), True
    raise fields.unsupported(f"{_KEY}model", kind, "gpt2 (byte-level BPE), llama (SentencePiece BPE)")


def _chat_templates(fields: Fields) -> dict[str, str]:
    keys = [key for key in fields.values if key.startswith(_TEMPLATE) and not key.endswith("chat_templates")]
    return {key.removeprefix(_TEMPLATE).removeprefix(".") or "default": fields.text(key) for key in keys}


def _splitting(fields: Fields) -> _Splitting:
    name = fields.text(f"{_KEY}pre", "default")
    if name not in _SPLITTINGS:
        raise fields.unsupported(f"{_KEY}pre", name, ", ".join(sorted(_SPLITTINGS)))
    return _SPLITTINGS[name]


def _byte_level(fields: Fields, tokens: list[str], splitting: _Splitting) -> Tokenizer:
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    alphabet = set(spelling.values())
    added = _added_ids(fields)

    def spelled(index: int, token: str) -> str:
        if index in added or set(token) <= alphabet:
            return token
        return "".join(spelling[byte] for byte in token.encode("utf-8", errors="surrogateescape"))

    vocab = {spelled(index, token): index for index, token in enumerate(tokens)}
    merges = _stored_merges(fields)
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=splitting.ignore_merges))
    if splitting.unicode_nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if splitting.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _llama(fields: Fields, tokens: list[str]) -> Tokenizer:
    scores = dict(zip(tokens, fields.numbers(f"{_KEY}scores"), strict=False))
    merges = _stored_merges(fields) or _implied_merges(tokens, scores.__getitem__)
    backend = Tokenizer(BPE(vocab=_ids(tokens), merges=merges, fuse_unk=True, byte_fallback=True))
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    add_space = fields.flag(f"{_KEY}add_space_prefix", True)
    scheme = "first" if add_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    if add_space:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _gemma(fields: Fields, tokens: list[str]) -> Tokenizer:
    # Files spell runs of spaces as spaces, the tokenizer as marks; and merges follow ids, not the scores.
    tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
    ids = _ids(tokens)
    merges = _stored_merges(fields) or _implied_merges(tokens, lambda token: -ids[token])
    backend = Tokenizer(BPE(vocab=ids, merges=merges, fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _stored_merges(fields: Fields) -> list[tuple[str, str]]:
    pairs = [merge.partition(" ") for merge in fields.strings(f"{_KEY}merges")]
    return [(left, right) for left, _, right in pairs]


def _implied_merges(tokens: list[str], score: Callable[[str], float]) -> list[tuple[str, str]]:
    """Every way to cut a token into two tokens, best token first, as SentencePiece would merge."""
    ids = _ids(tokens)
    merges: list[tuple[float, int, int, str, str]] = []
    for token in tokens:
        value = score(token)
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in ids and (right := token[cut:]) in ids:
                merges.append((value, cut, len(right), left, right))
    merges.sort(key=itemgetter(0, 1, 2), reverse=True)
    return [(left, right) for _, _, _, left, right in merges]


def _added_ids(fields: Fields) -> set[int]:
    kinds = fields.integers(f"{_KEY}token_type")
    return {index for index, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)}


def _add_tokens(backend: Tokenizer, fields: Fields, tokens: list[str]) -> None:
    kinds = fields.integers(f"{_KEY}token_type")
    marked = list(zip(tokens, kinds, strict=False))
    control = [AddedToken(token, normalized=False, special=True) for token, kind in marked if kind == _CONTROL]
    plain = [AddedToken(token, normalized=False) for token, kind in marked if kind == _USER_DEFINED]
    in_vocab = [token for token in plain if backend.token_to_id(token.content) is not None]
    backend.add_special_tokens(control)
    backend.add_tokens(in_vocab)


def _special_tokens(fields: Fields, tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {}
    for name, key in names.items():
        full = f"{_KEY}{key}_token_id"
        if fields.has(full):
            index = fields.integer(full, minimum=0)
            if index >= len(tokens):
                raise fields.unsupported(full, index, f"ids below {len(tokens)}")
            special[name] = tokens[index]
    return special
