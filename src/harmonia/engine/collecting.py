"""From what a step brought to what clients get to know."""

from __future__ import annotations

import numpy as np

from harmonia.engine.batch import Work
from harmonia.engine.drafting import DraftScheduler
from harmonia.engine.requests import FinishReason, SequenceOutput, TokenScore
from harmonia.engine.runner import Result
from harmonia.engine.sequence import Sequence
from harmonia.engine.stats import StatsRecorder


class Collector:
    """Applies results to their sequences."""

    def __init__(self, stats: StatsRecorder, drafts: DraftScheduler) -> None:
        self._stats = stats
        self._drafts = drafts

    def collect(self, sequence: Sequence, result: Result, now: float) -> SequenceOutput | None:
        """What one result means for its sequence; None if nothing is to be told yet."""
        request = sequence.request
        if result.prompt_scores and len(sequence.prompt_scores) < sequence.num_prompt - 1:
            sequence.prompt_scores += result.prompt_scores
        if sequence.generates:
            return self._append(sequence, result, now) if result.token_ids else None
        if request.score is not None:
            return self._collect_values(sequence, result)
        return SequenceOutput(seq_id=request.seq_id, embedding=result.embedding)

    def _collect_values(self, sequence: Sequence, result: Result) -> SequenceOutput | None:
        if result.work.epoch == sequence.epoch:
            sequence.values += result.values
        if not result.work.samples:
            return None
        values, version = np.asarray(sequence.values, dtype="<f4").tobytes(), sequence.instance.version
        return SequenceOutput(seq_id=sequence.request.seq_id, values=values, version=version)

    def _append(self, sequence: Sequence, result: Result, now: float) -> SequenceOutput:
        seq_id, version = sequence.request.seq_id, sequence.instance.version
        is_first = sequence.awaits_first_token
        num_new, reason = _extend(sequence, result.token_ids)
        num_drafted = result.work.num_drafted
        sequence.num_sampling -= 1 + num_drafted
        if num_drafted:
            self._settle(sequence, result.work, len(result.token_ids) - 1)
        num_wanted = 0
        if sequence.request.constrained:
            num_wanted = self._drafts.num_wanted(sequence)
            sequence.ask(num_wanted)
        self._observe_tokens(sequence, now, num_new, is_first=is_first)
        if not (is_first or reason or result.scores or num_drafted):
            return SequenceOutput(seq_id=seq_id, token_ids=result.token_ids, version=version, num_wanted=num_wanted)
        return SequenceOutput(
            seq_id=seq_id,
            token_ids=result.token_ids[:num_new],
            scores=result.scores[:num_new],
            finish_reason=reason,
            version=version,
            cached_tokens=sequence.cached_tokens if is_first else 0,
            queue_s=(sequence.started_s or now) - sequence.request.arrival_s if is_first else 0.0,
            prompt_scores=_prompt_scores(sequence) if is_first else (),
            num_drafted=num_drafted,
            num_accepted=len(result.token_ids) - 1,
            num_wanted=num_wanted,
        )

    def _settle(self, sequence: Sequence, work: Work, num_accepted: int) -> None:
        """Of the proposals so many were right."""
        if sequence.epoch == work.epoch:
            sequence.num_computed -= work.num_drafted - num_accepted
            self._drafts.settle(sequence)
        self._drafts.note(work.num_drafted, num_accepted)
        counters = self._stats.models[sequence.instance.key].counters
        counters["drafted_tokens"] += work.num_drafted
        counters["accepted_tokens"] += num_accepted

    def _observe_tokens(self, sequence: Sequence, now: float, count: int, *, is_first: bool) -> None:
        model = self._stats.models[sequence.instance.key]
        model.counters["generated_tokens"] += count
        if is_first:
            arrival = sequence.request.arrival_s
            model.counters["prompt_tokens"] += sequence.num_prompt
            model.counters["cached_tokens"] += sequence.cached_tokens
            model.ttft_seconds.observe(now - arrival)
            model.queue_seconds.observe((sequence.started_s or now) - arrival)
        elif sequence.last_token_s is not None:
            gap_s = (now - sequence.last_token_s) / count  # those of one step came evenly, as far as a reader can tell
            model.note_token(gap_s)
            for _ in range(1, count):
                model.note_token(gap_s)
        sequence.last_token_s = now


def _prompt_scores(sequence: Sequence) -> tuple[TokenScore, ...]:
    if sequence.sampling.prompt_logprobs is None:
        return ()
    return (TokenScore(None), *sequence.prompt_scores)


def _extend(sequence: Sequence, token_ids: tuple[int, ...]) -> tuple[int, FinishReason | None]:
    """Append tokens up to the one that ends the answer: how many, and why it ends."""
    count = 0
    for token_id in token_ids:
        sequence.tokens[sequence.num_tokens] = token_id
        sequence.num_tokens += 1
        count += 1
        reason = _finish_reason(sequence, token_id)
        if reason:
            return count, reason
    return count, None


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    if token_id in sequence.stop_ids and sequence.num_generated >= sequence.sampling.min_tokens:
        return "stop"
    return "length" if sequence.num_tokens >= sequence.max_total else None
