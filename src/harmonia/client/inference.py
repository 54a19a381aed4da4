"""A model that generates and scores."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any, Literal, Self, SupportsIndex, TypeVar, overload

import msgspec
from pydantic import BaseModel

from harmonia.client.session import Instance
from harmonia.client.structured import (
    generate_and_validate,
    get_pydantic_schema,
    pydantic_parse,
    render_pydantic_model,
    render_schema,
)
from harmonia.client.timings import Timings
from harmonia.client.tools import AnyTool, read_tools
from harmonia.client.values import (
    AnyThread,
    Real,
    from_float32,
    spread_over_tokens,
    token_ids,
    wire,
    with_answer,
)
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.protocol.base import JsonObject
from harmonia.protocol.client import Event, Stream
from harmonia.protocol.instances import (
    Detokenize,
    Detokenized,
    DetokenizeIds,
    Load,
    Loaded,
    PlainText,
    SampleData,
    Score,
    Scored,
    TokenIds,
    Tokenize,
    Tokenized,
    TokenizeText,
    TokenSample,
)
from harmonia.protocol.messages import (
    Constraint,
    Delta,
    Embed,
    Embedded,
    Finished,
    Generate,
    Prompt,
    TextPrompt,
    ThreadPrompt,
    TokenPrompt,
)
from harmonia.protocol.sampling import SamplingParams
from harmonia.protocol.threads import TokenThreadData
from harmonia.threads import StringThread, TokenizedThread

ObjectT = TypeVar("ObjectT", bound=BaseModel)

_NO_DEADLINE_MS = 7 * 24 * 3600 * 1000
"""Hundreds of generations may queue for longer than a chat would wait; whoever wants a limit cancels the call."""

Serialized = tuple[list[int], list[tuple[int, bytes]], list[float]]
"""Token ids, image patches (none yet), and a weight per token."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model object generates."""

    max_gen_len: int
    min_gen_len: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    tools: tuple[JsonObject, ...] = ()
    constraint: Constraint | None = None
    always_draft: int = 0


class InferenceModel:
    """An instance on a worker. `ModelBuilder.spawn_inference` makes it; it is freed with the last object that uses it.

    `temperature` and its like return a changed copy that shares the weights. Log-probabilities are natural, untempered
    and of the full vocabulary, whatever the sampling settings.
    """

    def __init__(self, instance: Instance, settings: Settings, builder_args: dict[str, Any]) -> None:
        self._instance = instance
        self._settings = settings
        self._builder_args = builder_args

    def __repr__(self) -> str:
        info = self._instance.info
        kind = " ".join(word for word, is_so in (("scoring", info.is_scalar), ("adapter", info.is_adapter)) if is_so)
        return f"{type(self).__name__}({info.name!r}, {kind or 'model'} on {info.backbone})"

    # ------------------------------------------------------------------------------------------------ settings

    def is_scalar(self) -> bool:
        """Whether it gives a number per token instead of a vocabulary."""
        return self._instance.info.is_scalar

    def get_builder_args(self) -> dict[str, Any]:
        """What its builder was told, as plain data; `path` is always a string."""
        return copy.deepcopy(self._builder_args)

    def temperature(self, temperature: float) -> Self:
        """Divides logits when sampling; 0 is greedy. 1 unless set."""
        return self._with(temperature=float(temperature))

    def top_p(self, top_p: float) -> Self:
        """Sample from the smallest set of tokens whose probability reaches this. 1 unless set."""
        return self._with(top_p=float(top_p))

    def max_gen_len(self, max_gen_len: int) -> Self:
        """Longest answer in tokens; the builder's `tokens_to_generate` unless set."""
        return self._with(max_gen_len=max_gen_len.__index__())

    def min_gen_len(self, min_gen_len: int) -> Self:
        """Shortest answer in tokens. 0 unless set."""
        return self._with(min_gen_len=min_gen_len.__index__())

    def always_draft(self, num_draft_steps: int = 1) -> Self:
        """Have its draft propose so many tokens in every step, whether that pays or not: to measure how many are right.

        No more than it was spawned for. 0: as many as are found to pay, as before.
        """
        if num_draft_steps.__index__() < 0:
            raise InvalidRequestError(f"num_draft_steps must be at least 0 (got {num_draft_steps})")
        return self._with(always_draft=num_draft_steps.__index__())

    def tools(self, tools: Sequence[AnyTool]) -> Self:
        """Tools that it may call, as OpenAI's function objects or their JSON text."""
        return self._with(tools=read_tools(tools))

    def constrained_decoding(self, schema: str, format: str) -> Self:
        """Answers follow a JSON schema, given as JSON text; `format` is "json"."""
        if format != "json":
            raise InvalidRequestError(f"constrained_decoding knows the format 'json', got {format!r}", field="format")
        return self._with(constraint=Constraint(kind="json_schema", source=schema))

    def _with(self, **changes: Any) -> Self:
        model = copy.copy(self)
        model._settings = msgspec.structs.replace(self._settings, **changes)
        return model

    # ---------------------------------------------------------------------------------------------- generating

    @overload
    async def generate(self, thread: AnyThread, response_model: Literal[False] | None = None) -> StringThread: ...
    @overload
    async def generate(self, thread: AnyThread, response_model: Literal[True]) -> tuple[StringThread, Timings]: ...
    @overload
    async def generate(self, thread: AnyThread, response_model: type[ObjectT]) -> tuple[StringThread, ObjectT]: ...
    @overload
    async def generate(
        self, thread: AnyThread, response_model: None = None, *, return_timings: Literal[True]
    ) -> tuple[StringThread, Timings]: ...
    @overload
    async def generate(
        self, thread: AnyThread, response_model: type[ObjectT], return_timings: Literal[True]
    ) -> tuple[StringThread, ObjectT, Timings]: ...
    async def generate(
        self, thread: AnyThread, response_model: type[BaseModel] | bool | None = None, return_timings: bool = False
    ) -> StringThread | tuple[object, ...]:
        """The conversation with one more assistant turn; metadata and weights of earlier turns stay.

        response_model: a pydantic class whose JSON the answer follows; then also an object of it is returned, or
        OutputParserException raised if the answer was cut short. In its place `return_timings` may stand, too.
        SequenceTooLongError if the conversation leaves no room for an answer.
        """
        if isinstance(response_model, bool):
            return_timings, form = response_model, None
        else:
            form = response_model
        finished = await self._answer(thread, form)
        answered = with_answer(thread, _only_thread(finished))
        parts: list[object] = [answered]
        if form is not None:
            parts.append(pydantic_parse(answered.last_content(), form))
        if return_timings:
            parts.append(Timings.of(finished))
        return answered if len(parts) == 1 else tuple(parts)

    @overload
    async def generate_tokens(self, thread: AnyThread) -> TokenizedThread: ...
    @overload
    async def generate_tokens(
        self, thread: AnyThread, response_model: type[ObjectT]
    ) -> tuple[TokenizedThread, ObjectT]: ...
    async def generate_tokens(
        self, thread: AnyThread, response_model: type[BaseModel] | None = None
    ) -> TokenizedThread | tuple[object, ...]:
        """As `generate`, in the tokens that were sampled; only the new turn is weighted."""
        data = _only_thread(await self._answer(thread, response_model))
        answered = TokenizedThread.from_data(data, thread.metadata)
        if response_model is None:
            return answered
        return answered, pydantic_parse(answered.detokenized().last_content(), response_model)

    async def generate_and_validate(
        self, thread: StringThread, pydantic_model: type[ObjectT], max_parsing_retries: int = 1
    ) -> tuple[str, ObjectT]:
        """Ask in words, without a grammar, until the answer parses: its text and the object in it.

        JsonParseError after that many retries, each of which shows the model what was wrong.
        """
        return await generate_and_validate(self, thread, pydantic_model, max_parsing_retries)

    render_schema = staticmethod(render_schema)
    render_pydantic_model = staticmethod(render_pydantic_model)

    async def raw_string_create(self, prompt: str) -> str:
        """What follows a plain text, without any template."""
        _, deltas = await self._generate(TextPrompt(text=prompt))
        return "".join(delta.text for delta in deltas)

    async def raw_token_create(self, prompt: Sequence[SupportsIndex]) -> list[int]:
        """The tokens that follow the given ones."""
        _, deltas = await self._generate(TokenPrompt(token_ids=token_ids(prompt)))
        return [token for delta in deltas for token in delta.token_ids]

    async def _answer(self, thread: AnyThread, response_model: type[BaseModel] | None) -> Finished:
        model = self
        if response_model is not None:
            model = self.constrained_decoding(get_pydantic_schema(response_model), "json")
        finished, _ = await model._generate(ThreadPrompt(thread=wire(thread), tools=self._settings.tools))
        return finished

    async def _generate(self, prompt: Prompt) -> tuple[Finished, list[Delta]]:
        self._instance.check()
        session, settings = self._instance.session, self._settings
        request = Generate(
            id=session.new_id(),
            model=self._instance.name,
            prompt=prompt,
            sampling=SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_gen_len,
                min_tokens=settings.min_gen_len,
            ),
            constraint=settings.constraint,
            max_ttft_ms=_NO_DEADLINE_MS,
            parse_tools=bool(settings.tools),
            stream=False,
            num_draft_steps=settings.always_draft or None,
            always_draft=settings.always_draft > 0,
        )
        async with session.places:
            events = await _events(session.generate(request))
        finished = next((event for event in events if isinstance(event, Finished)), None)
        if finished is None:
            raise HarmoniaError("the worker ended a generation without saying so")
        return finished, [event for event in events if isinstance(event, Delta)]

    # ----------------------------------------------------------------------------------------- text and tokens

    async def tokenize_thread(self, thread: StringThread) -> TokenizedThread:
        """The conversation in tokens, as the model's template renders it; roles, weights and metadata stay."""
        answer = await self._instance.ask(Tokenize, Tokenized, thread=thread.to_data())
        return TokenizedThread.from_data(answer.thread, thread.metadata)

    async def detokenize_thread(self, thread: TokenizedThread) -> StringThread:
        """The conversation in text; roles, weights and metadata stay."""
        answer = await self._instance.ask(Detokenize, Detokenized, thread=thread.to_data())
        return StringThread.from_data(answer.thread, thread.metadata)

    async def serialize_thread(self, thread: StringThread) -> Serialized:
        """Token ids, image patches, and a weight per token."""
        return await self.serialize_tokenized_thread(await self.tokenize_thread(thread))

    async def serialize_tokenized_thread(self, thread: TokenizedThread) -> Serialized:
        """Token ids, image patches, and a weight per token."""
        return list(thread.token_ids), [], list(thread.weights)

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list((await self._instance.ask(TokenizeText, TokenIds, text=text)).token_ids)

    async def detokenize(self, tokens: Sequence[SupportsIndex]) -> str:
        """Text of plain token ids."""
        return (await self._instance.ask(DetokenizeIds, PlainText, token_ids=token_ids(tokens))).text

    async def char_to_token_rewards(self, text: str, char_rewards: Sequence[Real]) -> list[float]:
        """Rewards per character as rewards per token of `tokenize(text)`; the total stays the same."""
        tokens = await self.tokenize(text)
        prefixes = await asyncio.gather(*(self.detokenize(tokens[:end]) for end in range(1, len(tokens) + 1)))
        return spread_over_tokens(text, char_rewards, prefixes)

    # ------------------------------------------------------------------------------------------------- scoring

    async def logprobs(self, thread: StringThread) -> float:
        """The summed log-probability of the weighted tokens."""
        return sum(await self._score(wire(thread), "logprobs"))

    async def logprobs_per_token(self, thread: TokenizedThread) -> list[float]:
        """The log-probability of each weighted token."""
        return await self._score(wire(thread), "logprobs")

    async def raw_logprobs(self, tokens: Sequence[SupportsIndex]) -> list[float]:
        """The log-probability of each token after those before it; 0.0 for the first, which follows nothing."""
        ids = token_ids(tokens)
        if len(ids) < 2:
            return [0.0] * len(ids)
        weights = (0.0, *[1.0] * (len(ids) - 1))
        return [0.0, *await self._score(TokenSample(token_ids=ids, weights=weights), "logprobs")]

    async def score(self, thread: TokenizedThread) -> list[float]:
        """A scoring model's value before each weighted token; as many as `logprobs_per_token` gives."""
        return await self._score(wire(thread), "scores")

    async def score_last_token(self, thread: StringThread) -> float:
        """A scoring model's value of the whole conversation, read at its last token."""
        (score,) = await self._score(wire(thread), "last_score")
        return score

    async def embed(self, tokens: Sequence[SupportsIndex]) -> list[float]:
        """The final hidden state of the last token, of length 1."""
        self._instance.check()
        session, prompt = self._instance.session, TokenPrompt(token_ids=token_ids(tokens))
        request = Embed(id=session.new_id(), model=self._instance.name, prompts=(prompt,), max_ttft_ms=_NO_DEADLINE_MS)
        async with session.places:
            (vector,) = (await session.ask(request, Embedded)).vectors
        return from_float32(vector)

    async def _score(self, sample: SampleData, what: str) -> list[float]:
        async with self._instance.session.places:
            return from_float32((await self._instance.ask(Score, Scored, sample=sample, what=what)).values)

    # ------------------------------------------------------------------------------------------------- weights

    async def load(self, path: str) -> None:
        """Replace its weights, and the optimizer state where it was saved, by those of `model_registry://key`."""
        answer = await self._instance.ask(Load, Loaded, path=path)
        self._instance.optim_step = answer.optim_step

    async def dealloc(self) -> None:
        """Free it at once; whatever still uses it raises."""
        await self._instance.free()


async def _events(stream: Stream) -> list[Event]:
    """Everything that a generation gives; it ends with its reader."""
    events: list[Event] = []
    try:
        while some := await stream.next_events():
            events += some
    except asyncio.CancelledError:
        stream.cancel()
        raise
    return events


def _only_thread(finished: Finished) -> TokenThreadData:
    if len(finished.threads) != 1:
        raise HarmoniaError(f"the worker gave {len(finished.threads)} conversations for one answer")
    return finished.threads[0]
