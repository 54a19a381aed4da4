"""Stop strings over a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.errors import InvalidRequestError

MAX_STOPS = 32
MAX_STOP_CHARS = 256


def check_stops(stops: Sequence[str]) -> None:
    """Refuse stop strings that are empty, too long or too many."""
    if len(stops) > MAX_STOPS:
        raise InvalidRequestError(f"stop takes at most {MAX_STOPS} strings, got {len(stops)}", field="stop")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            want = f"strings of 1 to {MAX_STOP_CHARS} characters"
            raise InvalidRequestError(f"stop must hold {want}, got one of {len(stop)}", field="stop")


def split_partial(text: str, markers: Sequence[str]) -> tuple[str, str]:
    """Cut `text` before the longest end of it that could be the beginning of a marker."""
    longest = max(map(len, markers), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(marker.startswith(text[start:]) for marker in markers):
            return text[:start], text[start:]
    return text, ""


class StopScanner:
    """Passes text on until a stop string is complete, holding back what may become one.

    The stop string that is complete first ends the text, at its first character; of two that end at the same
    character, the one that began earlier. So the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is surely not part of a stop string."""
        if self.stopped or not text:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        text, self._held = split_partial(text, self._stops)
        return text

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held
