"""The exact bytes that each token stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's spelling: the printable character that stands for each byte (Radford et al., GPT-2, 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {chr(byte): byte for byte in printable}
    return spelling | {chr(256 + index): byte for index, byte in enumerate(others)}


def token_bytes_table(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes by token id; ids without a token are empty. Added tokens stand for their own text."""
    added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    table = [b""] * (max([*vocab.values(), *added], default=-1) + 1)
    to_bytes = _converter(tokenizer)
    for token, index in vocab.items():
        table[index] = to_bytes(token)
    for index, content in added.items():
        table[index] = content.encode()
    return table


def _converter(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    kinds = _decoder_kinds(tokenizer)
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece
    return str.encode


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    if tokenizer.decoder is None:
        return set()
    state = json.loads(tokenizer.decoder.__getstate__())
    parts = state.get("decoders", [state]) if isinstance(state, dict) else []
    return {part["type"] for part in parts}


_ALPHABET = byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()
