"""Stop strings against the plain way: generate everything, then cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.errors import InvalidRequestError
from harmonia.worker.stops import StopScanner, check_stops

letters = st.text("ab", max_size=30)


def cut(text: str, stops: list[str]) -> str:
    """Write the answer one character at a time and cut it when a stop string is complete."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(st.lists(letters), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_scanner_agrees_with_cutting_the_whole(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    whole, shown, expected = "".join(pieces), "", cut("".join(pieces), stops)
    for piece in pieces:
        shown += scanner.push(piece)
        assert expected.startswith(shown)
    shown += scanner.flush()
    assert shown == expected
    assert scanner.stopped == any(stop in whole for stop in stops)


def test_text_is_held_only_while_it_may_become_a_stop() -> None:
    scanner = StopScanner(["\n\nUser:"])
    assert scanner.push("Hi\n") == "Hi"
    assert scanner.push("\n") == ""
    assert scanner.push("there") == "\n\nthere"
    assert scanner.push("\n\nUser") == ""
    assert scanner.flush() == "\n\nUser"


@pytest.mark.parametrize("stops", [[""], ["x" * 1000], ["a"] * 100])
def test_unreasonable_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="stop"):
        check_stops(stops)
