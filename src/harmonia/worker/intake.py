"""Requests to sequences: everything that is checked, rendered and tokenized before the engine hears of a request."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import msgspec

from harmonia.config import WorkerConfig
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.models.tokenizer import ModelTokenizer
from harmonia.protocol.instances import SampleData, Score
from harmonia.protocol.messages import ChatPrompt, Embed, Generate, TextPrompt, ThreadPrompt, TokenPrompt
from harmonia.protocol.sampling import SamplingParams
from harmonia.protocol.threads import ThreadData, TokenThreadData
from harmonia.worker.answers import Answer, AnswerText, ThreadDraft
from harmonia.worker.calls import Functions
from harmonia.worker.chat import template_args, template_messages, template_tools
from harmonia.worker.detokenize import Detokenizer, TokenTable
from harmonia.worker.grammar import Compiled, GrammarCompiler
from harmonia.worker.lookahead import Guide, Habits
from harmonia.worker.samples import Sample, read_sample, sample_chars
from harmonia.worker.spans import RequestSpans
from harmonia.worker.stops import check_stops
from harmonia.worker.streams import Client, Embedding, Generation, Scoring, Streams
from harmonia.worker.threads import ThreadTokenizer, num_chars
from harmonia.worker.toolforms import TAGS, Form, forms_for
from harmonia.worker.tools import ToolParser

MAX_ANSWERS = 128
MAX_EMBED_PROMPTS = 2048
# Longer texts are tokenized in a thread: some milliseconds, in which streams would stand still.
_INLINE_CHARS = 4096

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True):
    """What the engine can take."""

    family: str
    vocab_size: int
    max_seq_len: int
    max_sample_len: int = 0
    """Longest training sample; 0: as long as sequences."""


class Intake:
    """Turns what clients send into work for the engine, with the tokenizer of one base model."""

    def __init__(
        self, config: WorkerConfig, limits: Limits, tokenizer: ModelTokenizer, streams: Streams, executor: Executor
    ) -> None:
        self._config = config
        self._limits = limits
        self.tokenizer = tokenizer
        self._streams = streams
        self._executor = executor
        self._table = TokenTable(tokenizer, limits.vocab_size)
        self._grammars = GrammarCompiler(tokenizer, self._table, executor, config.max_grammar_bytes)
        self._habits = Habits(self._table)
        template = tokenizer.chat_template.sources if tokenizer.chat_template else {}
        self._forms = forms_for(limits.family, "\n".join(template.values()))
        self._shown = self._special_tags(self._forms)
        self._drops_first_space = _drops_first_space(tokenizer)
        self._max_token_bytes: int | None = None
        # Samples have a turn of their own: hundreds may come at once, and prompts do not wait behind them.
        self._turn, self._sample_turn = asyncio.Lock(), asyncio.Lock()
        self.threads = ThreadTokenizer(tokenizer)
        self.has_chat_template = tokenizer.chat_template is not None

    def limited(self, max_seq_len: int, max_sample_len: int) -> Intake:
        """The same for an instance with sequences and samples of these lengths."""
        limited = copy.copy(self)
        limits = msgspec.structs.replace(self._limits, max_seq_len=max_seq_len, max_sample_len=max_sample_len)
        limited._limits = limits
        return limited

    # ------------------------------------------------------------------------------------------- requests

    async def generate(self, request: Generate, client: Client, arrival_s: float) -> Generation:
        """Start a generation. Raises `InvalidRequestError` before anything is taken."""
        sampling = request.sampling
        if not 1 <= request.n <= MAX_ANSWERS:
            raise InvalidRequestError(f"n must be between 1 and {MAX_ANSWERS}, got {request.n}", field="n")
        sampling.validate(self._limits.vocab_size)
        check_stops(sampling.stop)
        deadline_ms = self._max_ttft_ms(request.max_ttft_ms)
        drafts: list[ThreadDraft] = []
        if isinstance(request.prompt, ThreadPrompt):
            thread = await self._thread_prompt(request.prompt)
            ids, schema = self._checked_ids(thread.token_ids), _schema(request)
            drafts = [ThreadDraft(thread, schema) for _ in range(request.n)]
        else:
            ids = await self._prompt_ids(request.prompt)
        room = self._room(len(ids))
        grammar = await self._grammars.compile(request.constraint) if request.constraint else None
        base = SequenceRequest(
            seq_id=0,
            model=request.model,
            token_ids=pack_ids(ids),
            session_id=request.session_id,
            arrival_s=arrival_s,
            ttft_deadline_s=arrival_s + deadline_ms / 1000,
            max_ttft_ms=deadline_ms,
            constrained=grammar is not None,
            num_draft_steps=request.num_draft_steps,
            always_draft=request.always_draft,
        )
        answers = [self._answer(request, index, ids, grammar) for index in range(request.n)]
        work = Generation(
            request.id, client, arrival_s, prompt_ids=ids, answers=answers, stream=request.stream, drafts=drafts
        )
        work.spans = RequestSpans.of(request, arrival_s)
        sequences = [
            msgspec.structs.replace(
                base, seq_id=self._streams.next_seq_id(), sampling=self._engine_sampling(sampling, index, room)
            )
            for index in range(request.n)
        ]
        self._streams.start(work, sequences, grammar.first_mask if grammar else None)
        return work

    async def embed(self, request: Embed, client: Client, arrival_s: float) -> Embedding:
        """Start computing embeddings. Raises `InvalidRequestError` before anything is taken."""
        if not 1 <= len(request.prompts) <= MAX_EMBED_PROMPTS:
            message = f"input must hold 1 to {MAX_EMBED_PROMPTS} prompts, got {len(request.prompts)}"
            raise InvalidRequestError(message, field="input")
        deadline_ms = self._max_ttft_ms(request.max_ttft_ms)
        prompts = [await self._prompt_ids(prompt) for prompt in request.prompts]
        for ids in prompts:
            self._check_length(len(ids), self._limits.max_seq_len)
        sequences = [
            SequenceRequest(
                seq_id=self._streams.next_seq_id(),
                model=request.model,
                token_ids=pack_ids(ids),
                arrival_s=arrival_s,
                ttft_deadline_s=arrival_s + deadline_ms / 1000,
                max_ttft_ms=deadline_ms,
                embed=True,
            )
            for ids in prompts
        ]
        work = Embedding(request.id, client, arrival_s, num_tokens=sum(map(len, prompts)))
        work.spans = RequestSpans.of(request, arrival_s)
        self._streams.start(work, sequences)
        return work

    async def score(
        self, request: Score, client: Client, arrival_s: float, ready: Callable[[], Awaitable[None]]
    ) -> Scoring:
        """Start reading values; `ready` is awaited before the engine hears of it. Has no deadline."""
        sample = await self.sample(request.sample)
        self._check_length(len(sample.token_ids), self._limits.max_seq_len)
        score, num_values = sample.score(request.what)
        sequence = SequenceRequest(
            seq_id=self._streams.next_seq_id(),
            model=request.instance,
            token_ids=sample.token_ids.tobytes(),
            arrival_s=arrival_s,
            score=score,
        )
        work = Scoring(request.id, client, arrival_s, num_values=num_values)
        await ready()
        self._streams.start(work, [sequence])
        return work

    # ----------------------------------------------------------------------------------- conversations and samples

    async def sample(self, data: SampleData) -> Sample:
        """A sample in tokens. Far too long text is refused before seconds are spent on tokenizing it."""
        self._check_sample_chars(data)
        read = partial(read_sample, data, self.threads, self._limits.vocab_size)
        return await self._in_turn(read, sample_chars(data), self._sample_turn)

    async def tokenize(self, thread: ThreadData) -> TokenThreadData:
        """A conversation in tokens."""
        return await self._in_turn(partial(self.threads.tokenize, thread), num_chars(thread), self._sample_turn)

    async def tokenize_text(self, text: str) -> tuple[int, ...]:
        """Plain text in tokens, and nothing around it."""
        encode = partial(self.tokenizer.encode, text, add_special=False)
        return tuple(await self._in_turn(encode, len(text), self._sample_turn))

    def text(self, token_ids: tuple[int, ...]) -> str:
        """Tokens as plain text, special ones by their names."""
        return self.tokenizer.decode(self._checked_ids(token_ids) if token_ids else (), skip_special=False)

    async def _thread_prompt(self, prompt: ThreadPrompt) -> TokenThreadData:
        size = num_chars(prompt.thread) if isinstance(prompt.thread, ThreadData) else 0
        return await self._in_turn(partial(self.threads.prompt, prompt.thread, prompt.tools), size, self._turn)

    async def _in_turn(self, work: Callable[[], T], chars: int, lock: asyncio.Lock) -> T:
        """Long work in a thread, short work here: one per turn of the event loop, so that a burst stops no stream."""
        if chars > _INLINE_CHARS:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        async with lock:
            result = work()
            await asyncio.sleep(0)
        return result

    def _max_ttft_ms(self, asked: int | None) -> int:
        if asked is not None and asked < 0:
            raise InvalidRequestError(f"max_ttft_ms must be 0 or more, got {asked}", field="max_ttft_ms")
        return self._config.max_ttft_ms if asked is None else asked

    # -------------------------------------------------------------------------------------------- prompts

    async def _prompt_ids(self, prompt: TextPrompt | ChatPrompt | TokenPrompt) -> tuple[int, ...]:
        if isinstance(prompt, TokenPrompt):
            return self._checked_ids(prompt.token_ids)
        ids = await self._in_turn(partial(self._encode, prompt), _num_chars(prompt), self._turn)
        if not ids:
            raise InvalidRequestError("the prompt is empty; give at least one token", field="prompt")
        return tuple(ids)

    def _checked_ids(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if not ids:
            raise InvalidRequestError("the prompt is empty; give at least one token", field="prompt")
        for worst in (min(ids), max(ids)):
            if not 0 <= worst < self._limits.vocab_size:
                message = f"prompt must hold token ids from 0 to {self._limits.vocab_size - 1}, got {worst}"
                raise InvalidRequestError(message, field="prompt")
        return ids

    def _encode(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        if isinstance(prompt, ChatPrompt):
            text, add_special = self._render(prompt), False
        else:
            text, add_special = prompt.text, True
        self._check_chars(text)
        ids = self.tokenizer.encode(text, add_special)
        prefix = list(self.tokenizer.prefix_ids)
        if add_special and prefix and ids[len(prefix) : 2 * len(prefix)] == prefix:
            return ids[len(prefix) :]  # the text spells out the begin of text that encoding adds
        return ids

    def _render(self, prompt: ChatPrompt) -> str:
        template = self.tokenizer.chat_template
        if template is None:
            message = "this model has no chat template; use /v1/completions, or serve an instruction-tuned model"
            raise InvalidRequestError(message, field="messages")
        return template.render(
            template_messages(prompt),
            tools=template_tools(prompt),
            add_generation_prompt=prompt.add_generation_prompt,
            extra=template_args(prompt),
        )

    def _check_chars(self, text: str) -> None:
        """Refuse what is too long whatever its tokens are, without spending seconds on tokenizing it."""
        if len(text) > _INLINE_CHARS:
            self._check_length(self._fewest_tokens(len(text)), self._limits.max_seq_len, "at least ")

    def _check_sample_chars(self, data: SampleData) -> None:
        num_chars, limit = sample_chars(data), max(self._limits.max_sample_len, self._limits.max_seq_len)
        if num_chars <= _INLINE_CHARS:
            return
        fewest = self._fewest_tokens(num_chars) if isinstance(data, ThreadData) else num_chars
        if fewest > limit:
            raise SequenceTooLongError(
                f"the sample has at least {fewest} tokens, and this instance takes {limit}; leave it out, shorten it, "
                "or spawn with a larger max_batch_size",
                num_tokens=fewest,
                limit=limit,
            )

    def _fewest_tokens(self, num_chars: int) -> int:
        if self._max_token_bytes is None:
            self._max_token_bytes = max(1, *(len(self._table.raw(token_id)) for token_id in range(len(self._table))))
        return num_chars // self._max_token_bytes

    def _room(self, num_prompt: int) -> int:
        """Tokens that an answer may have."""
        self._check_length(num_prompt, self._limits.max_seq_len - 1)
        return self._limits.max_seq_len - num_prompt

    def _check_length(self, num_tokens: int, most: int, about: str = "") -> None:
        limit = self._limits.max_seq_len
        if num_tokens > most:
            raise SequenceTooLongError(
                f"the prompt has {about}{num_tokens} tokens, and this model takes sequences of {limit} tokens, answer "
                "included; shorten it or serve with a larger max_seq_len (--max-seq-len, --kv-cache-len)",
                num_tokens=num_tokens,
                limit=limit,
            )

    # -------------------------------------------------------------------------------------------- answers

    def _answer(self, request: Generate, index: int, ids: tuple[int, ...], grammar: Compiled | None) -> Answer:
        tools = None
        if request.parse_tools:
            declared = request.prompt.tools if isinstance(request.prompt, ChatPrompt | ThreadPrompt) else ()
            tools = ToolParser(self._forms, Functions(declared))
        detokenizer = Detokenizer(
            self._table,
            strip_space=self._drops_first_space and ids[-1] in self.tokenizer.special_ids,
            shown=self._shown if request.parse_tools else None,
        )
        text = AnswerText(detokenizer, request.sampling.stop, tools, request.sampling.min_tokens)
        guide = Guide(grammar.start(), ids, self._habits) if grammar else None
        return Answer(index, text, guide, self._table)

    def _engine_sampling(self, sampling: SamplingParams, index: int, room: int) -> SamplingParams:
        """One answer's own: seed, length that fits, and only what the engine handles."""
        max_tokens = min(room, sampling.max_tokens or room)
        stops = (self.tokenizer.backend.token_to_id(stop) for stop in sampling.stop)
        special = [token_id for token_id in stops if token_id in self.tokenizer.special_ids]
        return msgspec.structs.replace(
            sampling,
            seed=None if sampling.seed is None else _int64(sampling.seed + index),
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            stop=(),
            stop_token_ids=(*sampling.stop_token_ids, *special),
            prompt_logprobs=sampling.prompt_logprobs if index == 0 else None,
        )

    def _special_tags(self, forms: Sequence[Form]) -> dict[int, bytes]:
        """Special tokens that mark tool calls, and so must reach the parser as text."""
        tags = {tag: self.tokenizer.backend.token_to_id(tag) for tag in (*(form.marker for form in forms), *TAGS)}
        return {index: tag.encode() for tag, index in tags.items() if index in self.tokenizer.special_ids}


def _schema(request: Generate) -> str | None:
    """The JSON schema that answers follow."""
    constraint = request.constraint
    return constraint.source if constraint is not None and constraint.kind == "json_schema" else None


def _int64(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _num_chars(prompt: TextPrompt | ChatPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    return sum(len(str(message.get("content"))) for message in prompt.messages) + 100 * len(prompt.tools)


def _drops_first_space(tokenizer: ModelTokenizer) -> bool:
    """Whether text begins with a space that only the tokenizer put there."""
    ids = tokenizer.encode("a", add_special=False)
    return bool(ids) and tokenizer.token_bytes(ids[0]).startswith(b" ")
