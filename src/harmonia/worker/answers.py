"""One answer in the making: from the engine's tokens to what its client reads."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.engine.requests import SequenceOutput, TokenScore
from harmonia.protocol.messages import Delta, TokenLogprob, ToolCall
from harmonia.protocol.threads import Fragment, FunctionCall, StructuredOutput, Text, TokenThreadData, TokenTurn
from harmonia.worker.detokenize import Detokenizer, TokenTable
from harmonia.worker.lookahead import Guide
from harmonia.worker.stops import StopScanner
from harmonia.worker.tools import ToolParser


class AnswerText:
    """Tokens to text, cut at stop strings, with tool calls taken out."""

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str], tools: ToolParser | None, min_tokens: int = 0
    ) -> None:
        """min_tokens: the text of that many tokens is not searched for stop strings."""
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._tools = tools
        self._num_unstoppable = min_tokens

    @property
    def stopped(self) -> bool:
        """A stop string is complete."""
        return self._scanner.stopped

    @property
    def has_calls(self) -> bool:
        """The answer calls a tool."""
        return self._tools is not None and self._tools.num_calls > 0

    def push(self, token_id: int) -> str:
        """The text that this token adds."""
        text = self._detokenizer.push(token_id)
        if self._num_unstoppable:
            self._num_unstoppable -= 1
        else:
            text = self._scanner.push(text)
        return self._tools.push(text) if self._tools is not None else text

    def flush(self) -> str:
        """Whatever was held back, at the end."""
        text = self._scanner.push(self._detokenizer.flush()) + self._scanner.flush()
        return self._tools.push(text) + self._tools.flush() if self._tools is not None else text

    def take_calls(self) -> tuple[ToolCall, ...]:
        """Calls completed since the last time."""
        return self._tools.take_calls() if self._tools is not None else ()


class Answer:
    """One of the n answers to a request."""

    def __init__(self, index: int, text: AnswerText, guide: Guide | None, table: TokenTable) -> None:
        self.index = index
        self.guide = guide
        self.num_tokens = 0
        self.num_drafted = self.num_accepted = 0
        self.finish_reason: str | None = None
        self._text = text
        self._table = table

    def take(self, request_id: str, output: SequenceOutput, *, first: bool, prompt_ids: tuple[int, ...]) -> Delta:
        """Advance by what a step brought; what came after the end of the answer is dropped."""
        shown, kept = self._absorb(output)
        self.num_drafted += output.num_drafted
        self.num_accepted += output.num_accepted
        ended = self.finish_reason is not None
        leads = first and self.index == 0
        return Delta(
            id=request_id,
            index=self.index,
            text=shown,
            token_ids=output.token_ids[:kept],
            logprobs=self._logprobs(output.token_ids[:kept], output.scores) if output.scores else (),
            tool_calls=self._text.take_calls(),
            finish_reason=self.finish_reason,
            version=output.version,
            prompt_token_ids=prompt_ids if leads else (),
            prompt_logprobs=self._logprobs(prompt_ids, output.prompt_scores) if leads else (),
            drafted_tokens=self.num_drafted if ended else 0,
            accepted_tokens=self.num_accepted if ended else 0,
        )

    def _absorb(self, output: SequenceOutput) -> tuple[str, int]:
        """The text that became sure, and how many of the tokens belong to the answer."""
        texts: list[str] = []
        kept = 0
        # The token that ends an answer is no text, even when it is an ordinary one.
        num_text = len(output.token_ids) - (output.finish_reason == "stop")
        reason: str | None = output.finish_reason
        for token_id in output.token_ids:
            kept += 1
            if kept <= num_text:
                texts.append(self._text.push(token_id))
                if self._ends_here(token_id):
                    reason = "stop"
                    break
        self.num_tokens += kept
        if reason is not None:
            texts.append(self._text.flush())
            self.finish_reason = "tool_calls" if reason == "stop" and self._text.has_calls else reason
        return "".join(texts), kept

    def _ends_here(self, token_id: int) -> bool:
        if self.guide is not None:
            self.guide.consume(token_id)
            if self.guide.complete:
                return True
        return self._text.stopped

    def _logprobs(self, token_ids: Sequence[int], scores: Sequence[TokenScore]) -> tuple[TokenLogprob, ...]:
        table = self._table
        return tuple(
            TokenLogprob(
                token_id=token_id,
                token=table.text(token_id),
                token_bytes=table.raw(token_id),
                logprob=score.logprob,
                top=tuple(
                    (top.token_id, table.text(top.token_id), table.raw(top.token_id), top.logprob) for top in score.top
                ),
            )
            for token_id, score in zip(token_ids, scores, strict=False)
        )


class ThreadDraft:
    """The conversation that a prompt and one answer to it make."""

    def __init__(self, prompt: TokenThreadData, schema: str | None = None) -> None:
        """schema: the JSON schema that the answer follows."""
        self._prompt = prompt
        self._schema = schema
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, delta: Delta) -> None:
        """The answer gained this."""
        self._ids += delta.token_ids
        self._texts.append(delta.text)
        self._calls += delta.tool_calls

    def thread(self) -> TokenThreadData:
        """The prompt and what was sampled, to the token; only the answer has weight."""
        ids = (*self._prompt.token_ids, *self._ids)
        answer = TokenTurn(
            role="assistant", start=len(self._prompt.token_ids), stop=len(ids), weight=1.0, content=self._content()
        )
        return TokenThreadData(token_ids=ids, turns=(*self._prompt.turns, answer))

    def _content(self) -> tuple[Fragment, ...]:
        text = "".join(self._texts)
        calls = tuple(FunctionCall(call_id=call.id, name=call.name, arguments=call.arguments) for call in self._calls)
        if self._schema is not None:
            return (StructuredOutput(raw_text=text, parsed_json=text.strip(), schema=self._schema), *calls)
        return (Text(text=text), *calls) if text or not calls else calls


def joined(deltas: Sequence[Delta]) -> Delta:
    """Everything that one answer gained, as if it had come at once."""
    last = deltas[-1]
    return Delta(
        id=last.id,
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        tool_calls=tuple(call for delta in deltas for call in delta.tool_calls),
        finish_reason=last.finish_reason,
        version=last.version,
        prompt_token_ids=deltas[0].prompt_token_ids,
        prompt_logprobs=deltas[0].prompt_logprobs,
        drafted_tokens=last.drafted_tokens,
        accepted_tokens=last.accepted_tokens,
    )
