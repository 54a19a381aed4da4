"""Conversations to tokens and back: which tokens each turn became, in the very tokens that serving would see.

The model's chat template renders the whole conversation, which is tokenized once. Then its turns are located in it:

- A turn's content is where a mark lands that stands in its place, if all around the mark is as it is around it.
- An answer begins where the generation prompt ends: it is all that the model has to write, reasoning and calls too.
- The end-of-turn token belongs to a turn, what a template writes after it (a line break) does not.
- No turn holds position 0, which no state predicts.

A model without a template takes a prompt and its completion: contents one after the other, then the end of text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, TypeVar
from uuid import uuid4

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.models.tokenizer import ModelTokenizer
from harmonia.protocol.messages import ChatPrompt, JsonObject
from harmonia.protocol.threads import (
    Fragment,
    FunctionCall,
    Reasoning,
    StructuredOutput,
    Text,
    ThreadData,
    ThreadTurn,
    TokenThreadData,
    TokenTurn,
    ToolResponse,
)
from harmonia.worker.chat import template_messages, template_tools

ANSWERER = "assistant"
_MARK = uuid4().hex
_Data = TypeVar("_Data", ThreadData, TokenThreadData)
Render = Callable[[Sequence[JsonObject], bool], str]


class _Span(NamedTuple):
    """Characters of a turn; an end-of-turn token is looked for from `end` on."""

    start: int
    stop: int
    end: int


def num_chars(thread: ThreadData) -> int:
    """Work that a conversation makes, in characters: many short turns are rendered many times where all else fails."""
    return sum(len(_said(turn.content)) for turn in thread.turns) + 40 * len(thread.turns) ** 2


class ThreadTokenizer:
    """Renders conversations for one model."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(tokenizer.eos_ids)

    def tokenize(self, thread: ThreadData) -> TokenThreadData:
        """The conversation in tokens, with its weights. Errors: InvalidRequestError naming what cannot be rendered."""
        return self._tokens(thread, (), opened=False)

    def prompt(self, thread: ThreadData | TokenThreadData, tools: tuple[JsonObject, ...] = ()) -> TokenThreadData:
        """The conversation with a new answer opened at its end, whoever spoke last; no turn has weight.

        Tokens that are given stay as they are; only what closes the last turn and opens the answer is added.
        """
        if isinstance(thread, TokenThreadData):
            checked_turns(thread)
            return self._reopened(_unweighted(thread), tools)
        return self._tokens(_unweighted(thread), tools, opened=True)

    def detokenize(self, thread: TokenThreadData) -> ThreadData:
        """The conversation in text: what its turns were made from, else the text of their tokens."""
        checked_turns(thread)
        turns = tuple(
            ThreadTurn(role=turn.role, content=self._content(thread, turn), weight=turn.weight, flavor=turn.flavor)
            for turn in thread.turns
        )
        return ThreadData(turns=turns)

    # ------------------------------------------------------------------------------------------- with a template

    def _tokens(self, thread: ThreadData, tools: tuple[JsonObject, ...], *, opened: bool) -> TokenThreadData:
        if not thread.turns:
            raise InvalidRequestError("Empty thread error: the thread has no turns; add one", field="thread")
        template = self._tokenizer.chat_template
        if template is None:
            return self._plain(thread, opened=opened)
        prompt = ChatPrompt(messages=tuple(_message(turn) for turn in thread.turns), tools=tools)
        messages, functions = template_messages(prompt), template_tools(prompt)

        def render(shown: Sequence[JsonObject], answering: bool) -> str:
            return template.render(shown, tools=functions, add_generation_prompt=answering)

        text = render(messages, opened)
        spans = _locate(render, messages, text, opened, self._opening)
        ids, starts = self._encode(text)
        return TokenThreadData(token_ids=ids, turns=_checked_gaps(self._turns(thread, spans, ids, starts)))

    @cached_property
    def _opening(self) -> str:
        """What opens an answer after a plain question."""
        template = self._tokenizer.chat_template
        assert template is not None
        question = [{"role": "user", "content": "?"}]
        try:
            closed, opened = (template.render(question, add_generation_prompt=answer) for answer in (False, True))
        except InvalidRequestError:
            return ""  # a template that wants more than a question
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    def _turns(
        self, thread: ThreadData, spans: list[_Span], ids: tuple[int, ...], starts: list[int]
    ) -> tuple[TokenTurn, ...]:
        firsts = [*(bisect_left(starts, span.start) for span in spans), len(ids)]
        turns = []
        for place, (turn, span) in enumerate(zip(thread.turns, spans, strict=True)):
            stop = bisect_left(starts, span.stop)
            end = self._end(ids, bisect_left(starts, span.end), firsts[place + 1], answer=turn.role == ANSWERER)
            turns.append(_token_turn(turn, firsts[place], max(stop, end or 0)))
        return tuple(turns)

    def _end(self, ids: tuple[int, ...], at: int, limit: int, *, answer: bool) -> int | None:
        """The place after the end-of-turn token; other roles have theirs right after their content, if at all."""
        for place in range(at, limit if answer else min(at + 1, limit)):
            if ids[place] in self._ends:
                return place + 1
        special = answer and at < limit and ids[at] in self._tokenizer.special_ids
        return at + 1 if special else None

    def _encode(self, text: str) -> tuple[tuple[int, ...], list[int]]:
        """Token ids, and the character at which each begins."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"the thread holds half of a surrogate pair: {error}", field="thread") from error
        encoding = self._tokenizer.backend.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), [start for start, _ in encoding.offsets]

    def _reopened(self, thread: TokenThreadData, tools: tuple[JsonObject, ...]) -> TokenThreadData:
        if not thread.turns:
            return thread
        rendered = self._tokens(self.detokenize(thread), tools, opened=True)
        last, as_rendered = thread.turns[-1], rendered.turns[-1]
        ids, ends = rendered.token_ids, self._ends
        is_closed = last.stop > last.start and thread.token_ids[last.stop - 1] in ends
        end = as_rendered.stop
        if not is_closed and end > as_rendered.start and ids[end - 1] in ends:
            end -= 1
        kept, wanted = thread.token_ids[last.stop :], ids[end:]
        if kept != wanted[: len(kept)]:
            message = "the tokens after the last turn are not what the model's template writes; give the thread in text"
            raise InvalidRequestError(message, field="thread")
        return TokenThreadData(token_ids=(*thread.token_ids, *wanted[len(kept) :]), turns=thread.turns)

    # ---------------------------------------------------------------------------------------- without a template

    def _plain(self, thread: ThreadData, *, opened: bool) -> TokenThreadData:
        roles = [turn.role for turn in thread.turns]
        if ANSWERER in roles[: len(roles) if opened else -1]:
            raise InvalidRequestError(
                "this model has no chat template, so it takes a prompt and one completion after it; train or ask an "
                "instruction-tuned model for conversations of several answers",
                field="thread",
            )
        ids: list[int] = list(self._tokenizer.prefix_ids)
        num_prompt = len(roles) - (roles[-1] == ANSWERER)
        said = [_said(turn.content) for turn in thread.turns]
        prompt, starts = self._encode("".join(said[:num_prompt]))
        bounds = [len("".join(said[:place])) for place in range(num_prompt + 1)]
        places = [len(ids) + bisect_left(starts, bound) for bound in bounds]
        ids += prompt
        turns = [_token_turn(turn, *pair) for turn, pair in zip(thread.turns, pairwise(places), strict=False)]
        if num_prompt < len(roles):
            start = len(ids)
            ids += self._encode(said[-1])[0]
            ids += [token for token in (self._tokenizer.eos_id,) if token is not None] or self._tokenizer.eos_ids[:1]
            turns.append(_token_turn(thread.turns[-1], start, len(ids)))
        return TokenThreadData(token_ids=tuple(ids), turns=_checked_gaps(tuple(turns)))

    def _content(self, thread: TokenThreadData, turn: TokenTurn) -> tuple[Fragment, ...]:
        if turn.content:
            return turn.content
        text = self._tokenizer.decode(thread.token_ids[turn.start : turn.stop])
        return (Text(text=text),) if text else ()


def checked_turns(thread: TokenThreadData) -> None:
    """Raise `InvalidRequestError` unless the turns follow each other within the tokens."""
    end = 0
    for place, turn in enumerate(thread.turns):
        if not end <= turn.start <= turn.stop <= len(thread.token_ids):
            message = f"turn {place} is tokens [{turn.start}, {turn.stop}) of {len(thread.token_ids)}, and must begin"
            raise InvalidRequestError(f"{message} at {end} or later; turns do not overlap", field="thread")
        end = turn.stop


def _unweighted(thread: _Data) -> _Data:
    turns = [msgspec.structs.replace(turn, weight=0.0, flavor="PerToken") for turn in thread.turns]
    return msgspec.structs.replace(thread, turns=tuple(turns))


def _token_turn(turn: ThreadTurn, start: int, stop: int) -> TokenTurn:
    start = max(start, 1) if stop > 1 else stop
    return TokenTurn(
        role=turn.role, start=start, stop=stop, weight=turn.weight, flavor=turn.flavor, content=turn.content
    )


def _checked_gaps(turns: tuple[TokenTurn, ...]) -> tuple[TokenTurn, ...]:
    filled = [(place, turn) for place, turn in enumerate(turns) if turn.stop > turn.start and turn.weight]
    for (place, turn), (later, following) in pairwise(filled):
        if turn.stop == following.start:
            message = f"no token stands between the turns {place} and {later}; give weight to one of them only"
            raise InvalidRequestError(message, field="thread")
    return turns


# ------------------------------------------------------------------------------------------------- turns to messages


def _message(turn: ThreadTurn) -> JsonObject:
    """A turn in OpenAI's shape, as the chat route would get it."""
    message: JsonObject = {"role": turn.role, "content": _said(turn.content)}
    reasoning = "".join(fragment.text for fragment in turn.content if isinstance(fragment, Reasoning))
    calls = [_call(fragment) for fragment in turn.content if isinstance(fragment, FunctionCall)]
    answered = [item.call_id for item in turn.content if isinstance(item, ToolResponse) and item.call_id is not None]
    extra = {"reasoning_content": reasoning, "tool_calls": calls, "tool_call_id": answered[0] if answered else None}
    return {**message, **{key: value for key, value in extra.items() if value}}


def _said(content: tuple[Fragment, ...]) -> str:
    return "".join(_text(fragment) for fragment in content)


def _text(fragment: Fragment) -> str:
    match fragment:
        case Text(text=text):
            return text
        case StructuredOutput(raw_text=text) | ToolResponse(content=text):
            return text
        case _:
            return ""


def _call(call: FunctionCall) -> JsonObject:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


# ----------------------------------------------------------------------------------------------------- where turns are


def _locate(render: Render, messages: list[JsonObject], text: str, opened: bool, opening: str) -> list[_Span]:
    """Where each turn is. `opening`: the generation prompt, as far as it is always the same."""
    contents = _content_spans(render, messages, text, opened)
    spans: list[_Span] = []
    at = 0
    for place, message in enumerate(messages):
        span = contents[place] if contents else _content_span(render, messages, place, text, opened)
        if message["role"] == ANSWERER:
            found = text.find(opening, at, span.start) if opening and span is not None else -1
            if span is not None and found >= 0:
                span = span._replace(start=found + len(opening))
            else:
                span = _answer_span(render, messages, place, text, span)
        if span is None or span.start < at:
            role = message["role"]
            raise InvalidRequestError(
                f"turn {place} ({role}) cannot be found in what the model's chat template makes of the thread: the "
                "template leaves it out or rewrites it; merge it with its neighbour or leave it out",
                field="thread",
            )
        spans.append(span)
        at = span.stop
    return spans


def _content_spans(render: Render, messages: list[JsonObject], text: str, opened: bool) -> list[_Span] | None:
    """All contents by one render with marks in their places; None if it does not explain the text to the letter."""
    marks = [f"{_MARK}-{place}." for place in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = _rendered(render, marked, opened) or ""
    around = []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            return None
        around.append(before)
    around.append(rest)
    spans = []
    at = len(around[0])
    fits = text.startswith(around[0])
    for message, after in zip(messages, around[1:], strict=True):
        content = message["content"]
        shown = next((c for c in (content, content.strip()) if text.startswith(c + after, at)), None)
        if shown is None or not fits:
            return None
        spans.append(_Span(at, at + len(shown), at + len(shown)))
        at += len(shown) + len(after)
    return spans if at == len(text) else None


def _content_span(render: Render, messages: list[JsonObject], place: int, text: str, opened: bool) -> _Span | None:
    """Where a mark lands that stands in the place of the content, if all around it stays as it is."""
    marked = [*messages[:place], {**messages[place], "content": _MARK}, *messages[place + 1 :]]
    around = _rendered(render, marked, opened)
    head, found, tail = around.partition(_MARK) if around is not None else ("", "", "")
    fits = text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)
    if not (found and fits):
        return None
    stop = len(text) - len(tail)
    return _Span(len(head), stop, stop)


def _answer_span(
    render: Render, messages: list[JsonObject], place: int, text: str, content: _Span | None
) -> _Span | None:
    """From the generation prompt to the content's end; without a content, to the end of what the turn adds."""
    before = _rendered(render, messages[:place], True)
    start = len(before) if before is not None and text.startswith(before) else None
    if content is not None:
        return content._replace(start=content.start if start is None else min(start, content.start))
    after = _rendered(render, messages[: place + 1], False)
    if start is None or after is None or not text.startswith(after) or len(after) < start:
        return None
    return _Span(start, max(start, len(after.rstrip())), start)


def _rendered(render: Render, messages: Sequence[JsonObject], answering: bool) -> str | None:
    try:
        return render(messages, answering)
    except InvalidRequestError:
        return None  # templates may want a first message, or an order of roles
