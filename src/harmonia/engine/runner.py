"""Runs batches on the device: forward pass, sampling, log-probabilities.

Shapes: T tokens, R rows that sample, E features, V vocabulary, P tokens per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.engine.backbone import Backbone
from harmonia.engine.batch import Batch, Schedule, Work, num_kept_places
from harmonia.engine.cached import CachedDecoder
from harmonia.engine.inputs import StepInputs, fetch, send
from harmonia.engine.proposer import Proposer
from harmonia.engine.requests import TokenScore, TopLogprob, unpack_ids
from harmonia.engine.sampler import Sampler
from harmonia.engine.steps import CachedModel, GraphedSteps, PlainSteps
from harmonia.kernels.compiling import compile_together
from harmonia.kernels.feed import remember
from harmonia.kernels.logprobs import token_logprobs, top_logprobs
from harmonia.kernels.sample import SamplingTensors, sample

_PROMPT_LOGPROB_ROWS = 64
"""Prompt positions scored at once; bounds the logits to 64 rows of the vocabulary."""
_SCORED_ROWS = 128
"""The same for `score` requests, which need no candidates."""


class Result(NamedTuple):
    """What one step brought for one sequence."""

    work: Work
    token_ids: tuple[int, ...] = ()
    """One, and one more for each proposal that was right."""
    scores: tuple[TokenScore, ...] = ()
    embedding: bytes = b""
    prompt_scores: tuple[TokenScore, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scores:
    """Log-probabilities of some rows, on their way to the host."""

    chosen: Tensor
    top_values: Tensor
    top_ids: Tensor
    num_top: tuple[int, ...]

    def read(self) -> list[TokenScore]:
        chosen, values, ids = self.chosen.tolist(), self.top_values.tolist(), self.top_ids.tolist()
        return [
            TokenScore(chosen[row], tuple(TopLogprob(ids[row][rank], values[row][rank]) for rank in range(count)))
            for row, count in enumerate(self.num_top)
        ]


class _Kept(NamedTuple):
    """The ids that the device keeps, once the draft has proposed, on their way to the host."""

    ids: Tensor
    done: torch.cuda.Event | None

    def proposals(self, batch: Batch) -> list[list[int]]:
        """What each share of work was fed as proposals; whoever calls has waited for it."""
        fed_T = batch.fed_slots_T
        ids_T = np.where(fed_T >= 0, self.ids.numpy()[fed_T], batch.token_ids_T).tolist()
        proposed, stop = list[list[int]](), 0
        for work in batch.work:
            stop += work.count
            proposed.append(ids_T[stop - work.num_drafted : stop])
        return proposed


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way, with its results; `read` waits until they are on the host."""

    schedule: Schedule
    batch: Batch
    ids_R: Tensor
    kept: _Kept | None
    """None: a draft did not run."""
    scored: tuple[int, ...]
    """Rows of `batch.generating` whose log-probability was asked for."""
    scores: _Scores | None
    prompt_scores: tuple[tuple[Work, _Scores], ...]
    embeddings: tuple[tuple[Work, Tensor], ...]
    values: tuple[tuple[Work, Tensor], ...]
    done: torch.cuda.Event | None
    """On a GPU, when everything above has arrived."""

    def read(self) -> list[Result]:
        """Results of every sequence that gained something."""
        if self.done is not None:
            self.done.synchronize()
        ids = self.ids_R.tolist()
        if not (self.batch.num_drafted or self.scores or self.prompt_scores or self.embeddings or self.values):
            return [Result(work, (token_id,)) for work, token_id in zip(self.batch.generating, ids, strict=True)]
        prompt: dict[int, list[TokenScore]] = {}
        for work, scores in self.prompt_scores:
            prompt.setdefault(work.sequence.request.seq_id, []).extend(scores.read())
        scores_of = dict(zip(self.scored, self.scores.read(), strict=True)) if self.scores else {}
        results, row = list[Result](), 0
        for work, proposed in self._generated():
            token_ids = agreed(ids[row : row + work.num_sampled], proposed)
            scored = tuple(scores_of[place] for place in range(row, row + len(token_ids)) if place in scores_of)
            first_scores = tuple(prompt.pop(work.sequence.request.seq_id, ()))
            results.append(Result(work, token_ids, scored, prompt_scores=first_scores))
            row += work.num_sampled
        results += [Result(work, embedding=row.numpy(force=True).tobytes()) for work, row in self.embeddings]
        results += [Result(work, values=tuple(values.tolist())) for work, values in self.values]
        by_id = {work.sequence.request.seq_id: work for work, _ in self.prompt_scores}
        return results + [Result(by_id[seq_id], prompt_scores=tuple(scores)) for seq_id, scores in prompt.items()]

    def _generated(self) -> Iterator[tuple[Work, list[int]]]:
        """Work that samples, in the order of its rows, with what was proposed to it."""
        proposed = _proposals(self.batch, self.kept)
        for work, ids in zip(self.batch.work, proposed, strict=True):
            if work.samples and work.sequence.generates:
                yield work, ids


def _proposals(batch: Batch, kept: _Kept | None) -> list[list[int]]:
    if kept is not None and batch.num_drafted:
        return kept.proposals(batch)
    # Those that no draft made stand with the known tokens.
    return [
        work.sequence.tokens[work.start + work.count - work.num_drafted : work.start + work.count].tolist()
        for work in batch.work
    ]


def _note_proposals(batch: Batch, kept: _Kept) -> None:
    """Put proposals where penalties count tokens; waits for the draft, and only if somebody has any."""
    if not any(work.num_drafted and work.sequence.needs_history for work in batch.work):
        return
    if kept.done is not None:
        kept.done.synchronize()
    for work, ids in zip(batch.work, kept.proposals(batch), strict=True):
        stop = work.start + work.count
        work.sequence.tokens[stop - len(ids) : stop] = ids


def agreed(sampled: list[int], proposed: list[int]) -> tuple[int, ...]:
    """What was sampled up to the first proposal that is another token: the tokens that decoding one by one gives."""
    for place, token_id in enumerate(proposed):
        if sampled[place] != token_id:
            return tuple(sampled[: place + 1])
    return tuple(sampled)


class Runner:
    """One device: decoder, draft, caches, and the ids that were sampled last."""

    def __init__(self, backbone: Backbone) -> None:
        self.decoder = backbone.decoder
        self._device = backbone.device
        num_places = num_kept_places(backbone.plan.scheduler.max_running)
        self._last_ids = torch.zeros(num_places, dtype=torch.int64, device=self._device)
        self._sampler = Sampler(self.decoder.config.vocab_size, self._device)
        self._model, self._steps = self._steps_of(backbone)
        self.proposer = None
        """Runs the draft."""
        if backbone.draft is not None:
            self.proposer = Proposer(*self._steps_of(backbone.draft, is_draft=True), self._sampler)

    def _steps_of(
        self, cached: CachedDecoder, *, is_draft: bool = False
    ) -> tuple[CachedModel, GraphedSteps | PlainSteps]:
        model = CachedModel(cached, self._last_ids, self.decoder.config.vocab_size)
        return model, GraphedSteps(model, is_draft=is_draft) if self._device.type == "cuda" else PlainSteps(model)

    def _all_steps(self) -> Iterator[tuple[CachedModel, GraphedSteps | PlainSteps]]:
        yield self._model, self._steps
        if self.proposer is not None:
            yield self.proposer.model, self.proposer.steps

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compile and capture now what would otherwise delay the first requests, as far as that was not done."""
        is_new = [steps.prepare() for _, steps in self._all_steps()]
        if any(is_new):
            compile_together(self._draw, self._device)
            self._draw()

    def _draw(self) -> None:
        """From hidden states of zeros, as many as each graph gives."""
        for model, steps in self._all_steps():
            size, dtype = model.decoder.config.hidden_size, model.decoder.fmt.dtype
            for num_rows in steps.sizes:
                hidden_RE = torch.zeros(num_rows, size, dtype=dtype, device=self._device)
                ids_R = sample(model.logits(hidden_RE), SamplingTensors())
                remember(self._last_ids, torch.zeros_like(ids_R, dtype=torch.int32), ids_R)

    def prepare_adapters(self) -> None:
        """The same for steps with adapters; a draft has none."""
        self._steps.prepare(adapted=True)

    def resize(self) -> None:
        """Go by a new plan, of other instances."""
        for _, steps in self._all_steps():
            steps.resize()

    @torch.inference_mode()
    def launch(self, schedule: Schedule) -> Launched:
        """Start a step; on a GPU this returns before the device is done."""
        kept = self._propose(schedule)
        batch = schedule.batch()
        inputs, hidden_TE = self._steps.run(batch)
        if kept is not None:
            _note_proposals(batch, kept)
        ids_R, scored, scores = self._sample(hidden_TE, inputs, batch)
        reading = [(work, first) for work, first in batch.starts() if work.sequence.reads_more]
        return Launched(
            schedule=schedule,
            batch=batch,
            ids_R=ids_R,
            kept=kept,
            scored=scored,
            scores=scores,
            prompt_scores=self._prompt_scores(hidden_TE, reading),
            embeddings=tuple(
                (work, fetch(F.normalize(hidden_TE[row + work.count - 1].float(), dim=-1)))
                for work, row in reading
                if work.samples and work.sequence.request.embed
            ),
            values=tuple(self._values(hidden_TE, reading)),
            done=self._now(),
        )

    def _propose(self, schedule: Schedule) -> _Kept | None:
        """All passes of the draft, none of which waits for the one before it."""
        if not schedule.drafting:
            return None
        assert self.proposer is not None, "the scheduler drafts where there is a draft"
        for batch in schedule.passes():
            self.proposer(batch)
        return _Kept(fetch(self._last_ids), self._now())

    def _now(self) -> torch.cuda.Event | None:
        if self._device.type == "cpu":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _sample(
        self, hidden_TE: Tensor, inputs: StepInputs, batch: Batch
    ) -> tuple[Tensor, tuple[int, ...], _Scores | None]:
        generating = batch.generating
        if not generating:
            return torch.empty(0, dtype=torch.int64), (), None
        logits_RV = self.decoder.logits(hidden_TE if batch.is_decode else hidden_TE[inputs.sample_rows_R])
        ids_R = self._sampler(logits_RV, generating)
        remember(self._last_ids, inputs.sample_slots_R, ids_R)
        scored = tuple(row for row, work in enumerate(generating) if work.sequence.sampling.logprobs is not None)
        if not scored:
            return fetch(ids_R), scored, None
        counts = tuple(generating[row].sequence.sampling.logprobs or 0 for row in scored)
        picked = self._to_device(np.array(scored))
        return fetch(ids_R), scored, _score(logits_RV[picked], ids_R[picked], counts)

    def _prompt_scores(self, hidden_TE: Tensor, reading: list[tuple[Work, int]]) -> tuple[tuple[Work, _Scores], ...]:
        """Scores of the prompt tokens that follow each position of this step."""
        scores = []
        for work, first in reading:
            num_top = work.sequence.sampling.prompt_logprobs
            if num_top is None:
                continue
            stop = min(work.start + work.count, work.sequence.num_prompt - 1)
            for start in range(work.start, stop, _PROMPT_LOGPROB_ROWS):
                count = min(_PROMPT_LOGPROB_ROWS, stop - start)
                row = first + start - work.start
                logits_RV = self.decoder.logits(hidden_TE[row : row + count])
                targets = work.sequence.tokens[start + 1 : start + 1 + count].astype(np.int64)
                scores.append((work, _score(logits_RV, self._to_device(targets), (num_top,) * count)))
        return tuple(scores)

    def _values(self, hidden_TE: Tensor, reading: list[tuple[Work, int]]) -> Iterator[tuple[Work, Tensor]]:
        """What `score` requests read in this step."""
        for work, first in reading:
            score = work.sequence.request.score
            if score is None:
                continue
            all_rows = unpack_ids(score.rows)
            picked = slice(*np.searchsorted(all_rows, (work.start, work.start + work.count)))
            rows = self._to_device(all_rows[picked].astype(np.int64) + (first - work.start))
            head = work.sequence.instance.head
            if head is not None:
                yield work, fetch(head.scores(hidden_TE[rows]))
                continue
            targets = self._to_device(unpack_ids(score.targets)[picked].astype(np.int64))
            parts = zip(rows.split(_SCORED_ROWS), targets.split(_SCORED_ROWS), strict=True)
            logprobs = [token_logprobs(self.decoder.logits(hidden_TE[part]), ids) for part, ids in parts]
            yield work, fetch(torch.cat(logprobs))

    def _to_device(self, array: np.ndarray) -> Tensor:
        return send(array, self._device)


def _score(logits_RV: Tensor, ids_R: Tensor, num_top: tuple[int, ...]) -> _Scores:
    values, ids = top_logprobs(logits_RV, max(num_top))
    return _Scores(fetch(token_logprobs(logits_RV, ids_R)), fetch(values), fetch(ids), num_top)
