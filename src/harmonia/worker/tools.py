"""Tool calls out of a stream of text. Text that is not a well-formed call stays text, all of it."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence

from harmonia.protocol.messages import ToolCall
from harmonia.worker.calls import Call, Functions
from harmonia.worker.stops import split_partial
from harmonia.worker.toolforms import MISTRAL, Ending, Form

_ALPHABET = string.ascii_letters + string.digits


class ToolParser:
    """Separates calls from text, in whatever pieces the text arrives."""

    def __init__(self, forms: Sequence[Form], functions: Functions) -> None:
        self._forms = forms
        self._functions = functions
        # Mistral's templates refuse ids that are not nine letters or digits.
        self._id_prefix, self._id_chars = ("", 9) if MISTRAL in forms and len(forms) == 1 else ("call_", 24)
        self._held = ""
        self._lead = ""
        self._at_start = True
        self._form: Form | None = None
        self._ending: Ending | None = None
        self._new: list[ToolCall] = []
        self.num_calls = 0

    def push(self, text: str) -> str:
        """Take a piece; return what is surely plain text. Calls wait in `take_calls`."""
        self._held += text
        return self._advance(final=False) if text else ""

    def flush(self) -> str:
        """The end of the answer: what is left is a call that was not closed, or text."""
        return self._advance(final=True)

    def take_calls(self) -> tuple[ToolCall, ...]:
        """Calls that were completed since the last time."""
        calls, self._new = tuple(self._new), []
        return calls

    def _advance(self, *, final: bool) -> str:
        texts: list[str] = []
        while self._held or (final and self._form):
            before = len(self._held), self._form
            texts.append(self._in_call(final=final) if self._form else self._in_text(final=final))
            if (len(self._held), self._form) == before:
                break
        return "".join(texts)

    def _in_text(self, *, final: bool) -> str:
        """Text up to the next marker, which opens a call."""
        blank = len(self._held) - len(self._held.lstrip(self._blanks()))
        forms = [form for form in self._forms if self._at_start or not form.at_start]
        found = [(at, form) for form in forms if (at := self._find(form, blank)) >= 0]
        if not found:
            return self._plain([form.marker for form in forms], blank, final=final)
        at, form = min(found, key=lambda place: place[0])
        text, self._held = self._held[:at], self._held[at if form.keep_marker else at + len(form.marker) :]
        self._form, self._ending = form, form.ending()
        if self._at_start and at == blank:
            self._lead = text
            return ""
        return self._plain_text(text)

    def _blanks(self) -> str | None:
        """What may stand before a call without being text."""
        return " \t\r\n;," if self.num_calls else None

    def _find(self, form: Form, blank: int) -> int:
        if form.at_start:
            return blank if self._held.startswith(form.marker, blank) else -1
        return self._held.find(form.marker)

    def _plain(self, markers: list[str], blank: int, *, final: bool) -> str:
        """Everything that cannot be the beginning of a marker; space at the start waits for what follows it."""
        text, rest = (self._held, "") if final else split_partial(self._held, markers)
        if self._at_start and not final and blank >= len(text):
            return ""
        self._held = rest
        return self._plain_text(text)

    def _plain_text(self, text: str) -> str:
        """Text, less the space between it and a call before it."""
        text = text.lstrip() if self._at_start and self.num_calls else text
        self._at_start = False
        return text

    def _in_call(self, *, final: bool) -> str:
        assert self._form is not None and self._ending is not None
        end = self._ending.find(self._held)
        if end is None and not final:
            return ""
        body, form = self._held[:end], self._form
        self._form = self._ending = None
        lead, self._lead = self._lead, ""
        calls = form.read(body, self._functions)
        if calls:
            self._held = self._held[len(body) :]
            self._add(calls)
            return ""
        # Not a call: the marker becomes text, and what followed it is read again.
        if form.keep_marker:
            self._held = self._held[len(form.marker) :]
        self._at_start = False
        return lead + form.marker

    def _add(self, calls: list[Call]) -> None:
        self._at_start = True
        self.num_calls += len(calls)
        for call in calls:
            call_id = self._id_prefix + "".join(secrets.choice(_ALPHABET) for _ in range(self._id_chars))
            self._new.append(ToolCall(id=call_id, name=call.name, arguments=call.arguments_json()))
