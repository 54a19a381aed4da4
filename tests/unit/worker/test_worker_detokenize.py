"""Tokens to text: whole characters, special tokens skipped, the rule of the first space."""

from hypothesis import given
from hypothesis import strategies as st

from harmonia.worker.detokenize import Detokenizer, TokenTable


class Bytes:
    """A vocabulary of all bytes and a few words."""

    words = (b"\xe2\x82", b"\xac", " Grüße".encode(), b"<eos>")
    special_ids = frozenset({259})

    def token_bytes(self, token_id: int) -> bytes:
        """One byte, or a word."""
        return bytes([token_id]) if token_id < 256 else self.words[token_id - 256]


TABLE = TokenTable(Bytes(), 300)


def write(ids: list[int], **options: bool) -> list[str]:
    """What each token shows, and the end."""
    detokenizer = Detokenizer(TABLE, **options)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@given(st.lists(st.integers(0, 258)))
def test_pieces_are_the_whole(ids: list[int]) -> None:
    assert "".join(write(ids)) == b"".join(map(Bytes().token_bytes, ids)).decode("utf-8", "replace")


@given(st.text())
def test_valid_text_never_shows_parts_of_characters(text: str) -> None:
    shown = write(list(text.encode()))
    assert "".join(shown) == text
    assert text.count("\ufffd") == sum(piece.count("\ufffd") for piece in shown)


def test_a_character_waits_for_its_last_byte() -> None:
    assert write([256, 257]) == ["", "€", ""]
    assert write([256]) == ["", "\ufffd"]


def test_special_and_unknown_tokens_are_not_text() -> None:
    assert write([72, 259, 299, 105]) == ["H", "", "", "i", ""]
    shown = Detokenizer(TABLE, shown={259: b"<eos>"})
    assert shown.push(259) == "<eos>"
    assert TABLE.text(259) == "<eos>"


def test_first_space_is_dropped_once() -> None:
    assert write([259, 258, 258], strip_space=True) == ["", "Grüße", " Grüße", ""]
    assert write([258]) == [" Grüße", ""]
