"""Running requests: which sequence belongs to whom, and what each step's outputs mean for the clients."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from harmonia import log
from harmonia.engine.requests import SequenceOutput, SequenceRequest, pack_ids
from harmonia.errors import HarmoniaError, from_code
from harmonia.protocol.instances import Scored
from harmonia.protocol.messages import Delta, Embedded, Failed, Finished, Usage
from harmonia.worker.answers import Answer, ThreadDraft, joined
from harmonia.worker.link import NO_TURN, Add, Command, Drop, Hold, Mask, Release, Turn
from harmonia.worker.lookahead import Ahead, Guide
from harmonia.worker.spans import RequestSpans

_log = log.get_logger(__name__)

_PROPOSING_S = 0.004
"""What proposals for the answers of one step may take in all: those behind wait for it. A mask takes 0.1 ms."""

Message = Delta | Finished | Failed | Embedded | Scored


class Client(Protocol):
    """Whom a request belongs to."""

    def deliver(self, message: Message) -> None:
        """Take a message for sending; never waits."""


class Commands(Protocol):
    """The device, as far as streams speak to it."""

    def send(self, command: Command) -> None:
        """Give a command."""


class Work:
    """A request in progress, made of sequences."""

    def __init__(self, request_id: str, client: Client, arrival_s: float) -> None:
        self.request_id = request_id
        self.client = client
        self.arrival_s = arrival_s
        self.live: set[int] = set()
        """Its sequences that the engine still has."""
        self.spans: RequestSpans | None = None
        """Of a request that is traced."""

    def take(self, output: SequenceOutput) -> None:
        """One of its sequences gained something. Raises `HarmoniaError` to end the request."""
        raise NotImplementedError

    def begin(self, seq_ids: Sequence[int]) -> None:
        """Its sequences are these."""
        self.live = set(seq_ids)

    def close(self, usage: Usage | None = None, error: str = "") -> None:
        """It is over; its trace is told, once. error: a short name of why it was not answered."""
        spans, self.spans = self.spans, None
        if spans is not None:
            spans.end(usage, error)


class Generation(Work):
    """A `Generate` request: n answers to one prompt."""

    def __init__(
        self,
        request_id: str,
        client: Client,
        arrival_s: float,
        *,
        prompt_ids: tuple[int, ...],
        answers: list[Answer],
        stream: bool,
        drafts: list[ThreadDraft] | None = None,
    ) -> None:
        """drafts: one per answer, where the end is to bring conversations."""
        super().__init__(request_id, client, arrival_s)
        self._drafts = drafts or []
        self._prompt_ids = prompt_ids
        self._waiting = answers
        self._stream = stream
        self._answers: dict[int, Answer] = {}
        self._kept: dict[int, list[Delta]] = {}
        self._cached_tokens = 0
        self._timings_ms: dict[str, float] = {}

    def begin(self, seq_ids: Sequence[int]) -> None:
        """Its sequences are these."""
        super().begin(seq_ids)
        self._answers = dict(zip(seq_ids, self._waiting, strict=True))

    def guide(self, seq_id: int) -> Guide | None:
        """Who must say what may come next in this sequence."""
        return self._answers[seq_id].guide if seq_id in self.live else None

    def num_tokens(self, seq_id: int) -> int:
        """Generated so far."""
        return self._answers[seq_id].num_tokens

    def take(self, output: SequenceOutput) -> None:
        """Tell the client what this answer gained, and of the end of the last one."""
        answer = self._answers[output.seq_id]
        first = answer.num_tokens == 0
        if first:
            self._note_first(answer, output)
        delta = answer.take(self.request_id, output, first=first, prompt_ids=self._prompt_ids)
        self._show(delta)
        if answer.finish_reason is not None:
            self.live.discard(output.seq_id)
            if not self.live:
                self._finish()

    def _note_first(self, answer: Answer, output: SequenceOutput) -> None:
        if answer.index == 0:
            self._cached_tokens = output.cached_tokens
        if not self._timings_ms:
            self._timings_ms = {"queue": output.queue_s * 1000, "ttft": self._age_ms()}

    def _show(self, delta: Delta) -> None:
        if self._drafts:
            self._drafts[delta.index].add(delta)
        if self._stream:
            self.client.deliver(delta)
            return
        deltas = self._kept.setdefault(delta.index, [])
        deltas.append(delta)
        if delta.finish_reason is not None:
            self.client.deliver(joined(deltas))

    def _finish(self) -> None:
        usage = Usage(
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=sum(answer.num_tokens for answer in self._answers.values()),
            cached_tokens=self._cached_tokens,
            drafted_tokens=sum(answer.num_drafted for answer in self._answers.values()),
            accepted_tokens=sum(answer.num_accepted for answer in self._answers.values()),
        )
        timings_ms = {**self._timings_ms, "total": self._age_ms()}
        threads = tuple(draft.thread() for draft in self._drafts)
        self.client.deliver(Finished(id=self.request_id, usage=usage, timings_ms=timings_ms, threads=threads))
        self.close(usage)

    def _age_ms(self) -> float:
        return (time.monotonic() - self.arrival_s) * 1000


class Embedding(Work):
    """An `Embed` request: one vector per prompt."""

    def __init__(self, request_id: str, client: Client, arrival_s: float, *, num_tokens: int) -> None:
        super().__init__(request_id, client, arrival_s)
        self._num_tokens = num_tokens
        self._vectors: dict[int, bytes] = {}

    def begin(self, seq_ids: Sequence[int]) -> None:
        """Its sequences are these; answered in this order."""
        super().begin(seq_ids)
        self._vectors = dict.fromkeys(seq_ids, b"")

    def take(self, output: SequenceOutput) -> None:
        """Keep the vector; the last one completes the request."""
        self._vectors[output.seq_id] = output.embedding
        self.live.discard(output.seq_id)
        if not self.live:
            usage = Usage(prompt_tokens=self._num_tokens, completion_tokens=0)
            self.client.deliver(Embedded(id=self.request_id, vectors=tuple(self._vectors.values()), usage=usage))
            self.close(usage)


class Scoring(Work):
    """A `Score` request: values along one prompt."""

    def __init__(self, request_id: str, client: Client, arrival_s: float, *, num_values: int) -> None:
        super().__init__(request_id, client, arrival_s)
        self._num_bytes = 4 * num_values

    def take(self, output: SequenceOutput) -> None:
        """The values, all at once."""
        self.live.discard(output.seq_id)
        values = (output.values or b"")[: self._num_bytes]
        self.client.deliver(Scored(id=self.request_id, values=values, version=output.version))


class Streams:
    """All requests in progress, by sequence."""

    def __init__(self, device: Commands, executor: Executor) -> None:
        self._device = device
        self._executor = executor
        self._seq_ids = itertools.count(1)
        self._owners: dict[int, Work] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def next_seq_id(self) -> int:
        """A sequence id never used before."""
        return next(self._seq_ids)

    def start(self, work: Work, requests: Sequence[SequenceRequest], first_mask: bytes | None = None) -> None:
        """Give a request's sequences to the engine; refusals come back as outputs."""
        work.begin([request.seq_id for request in requests])
        for request in requests:
            self._owners[request.seq_id] = work
            self._device.send(Add(request))
            if first_mask is not None:
                self._device.send(Mask(request.seq_id, 0, first_mask))

    def cancel(self, work: Work) -> None:
        """Drop what is left of a request, in silence."""
        for seq_id in work.live:
            self._owners.pop(seq_id, None)
        if work.live:
            self._device.send(Drop(tuple(work.live)))
        work.live.clear()
        work.close(error="cancelled")

    def fail(self, work: Work, error: HarmoniaError) -> None:
        """Drop what is left of a request and tell its client why."""
        work.close(error=error.code)
        self.cancel(work)
        work.client.deliver(failure(work.request_id, error))

    def fail_all(self, error: HarmoniaError) -> None:
        """End every request with an error."""
        for work in set(self._owners.values()):
            self.fail(work, error)

    def hold(self, work: Work) -> None:
        """Stop scheduling a request."""
        if work.live:
            self._device.send(Hold(tuple(work.live)))

    def release(self, work: Work) -> None:
        """Go on scheduling it."""
        if work.live:
            self._device.send(Release(tuple(work.live)))

    def take(self, outputs: Sequence[SequenceOutput], turn: Turn = NO_TURN) -> None:
        """Hand each output of a step to its request."""
        guided: list[tuple[Generation, Guide, SequenceOutput]] = []
        for output in outputs:
            work = self._owners.get(output.seq_id)
            if work is None:
                continue  # cancelled, or ended here a step ago
            if work.spans is not None:
                work.spans.note(output, turn, len(outputs))
            try:
                self._take(work, output)
            except HarmoniaError as error:
                self.fail(work, error)
                continue
            except Exception:  # noqa: BLE001 - a mistake of ours must end one request, not the worker
                _log.exception("request %s failed", work.request_id)
                self.fail(work, HarmoniaError("internal error of the worker; its log says more"))
                continue
            if isinstance(work, Generation) and (guide := work.guide(output.seq_id)) is not None:
                guided.append((work, guide, output))
        if guided:
            self._make_masks(guided)

    def _take(self, work: Work, output: SequenceOutput) -> None:
        if output.error is not None:
            work.live.discard(output.seq_id)
            del self._owners[output.seq_id]
            raise from_code(output.error.code, output.error.message, output.error.details)
        work.take(output)
        if output.seq_id not in work.live:
            del self._owners[output.seq_id]
            if output.finish_reason is None and not output.embedding and output.values is None:
                self._device.send(Drop((output.seq_id,)))  # ended here, by a stop string or a grammar

    def _make_masks(self, guided: Sequence[tuple[Generation, Guide, SequenceOutput]]) -> None:
        """Compute masks in a thread, all of a step in one job, and send them on."""
        places = [(output.seq_id, work.num_tokens(output.seq_id)) for work, _, output in guided]
        asked = [(guide, output.num_wanted) for _, guide, output in guided]
        job = asyncio.get_running_loop().run_in_executor(self._executor, _look_ahead, asked)

        def send(done: asyncio.Future[list[Ahead | HarmoniaError]]) -> None:
            for (work, _, _), (seq_id, num_tokens), ahead in zip(guided, places, done.result(), strict=True):
                if seq_id not in work.live:
                    continue
                if isinstance(ahead, HarmoniaError):
                    self.fail(work, ahead)
                else:
                    self._device.send(Mask(seq_id, num_tokens, ahead.masks, pack_ids(ahead.proposals)))

        job.add_done_callback(send)


def _look_ahead(asked: Sequence[tuple[Guide, int]]) -> list[Ahead | HarmoniaError]:
    """Every answer gets its mask, and an equal share of the time that proposals may take."""
    begun_s, share_s = time.monotonic(), _PROPOSING_S / len(asked)
    return [
        _ahead(guide, num_wanted, begun_s + place * share_s) for place, (guide, num_wanted) in enumerate(asked, start=1)
    ]


def _ahead(guide: Guide, num_wanted: int, until_s: float) -> Ahead | HarmoniaError:
    try:
        return guide.ahead(num_wanted, until_s)
    except HarmoniaError as error:
        return error
    except BaseException:  # noqa: BLE001 - a panic of the library's is no Exception; without an answer all would wait
        _log.exception("a grammar failed")
        return HarmoniaError("internal error of the worker; its log says more")


def failure(request_id: str, error: HarmoniaError) -> Failed:
    """The wire form of an error."""
    return Failed(id=request_id, code=error.code, message=error.message, details=dict(error.details))
