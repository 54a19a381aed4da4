"""Rows of speculative decoding: tokens a second with a draft over those without, at acceptances that are set.

Random weights agree with nothing. So a run without a draft records what it answers, and afterwards the draft runs for
its cost and proposes recorded tokens, right ones as often as is wished.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from benchmarks.driver import Driver
from benchmarks.gpu.job import Job, Rows
from benchmarks.gpu.models import opened, path_of
from benchmarks.gpu.serving import BASE, Bench, config_of
from harmonia.engine.batch import Batch, Work
from harmonia.engine.inputs import send
from harmonia.engine.proposer import Proposer
from harmonia.engine.sampler import Sampler
from harmonia.kernels.feed import remember
from harmonia.protocol.instances import SpawnSpec

DRAFTS = {"8b": "0.6b", "tiny": "tiny"}
DRAFTED = "drafted"
NUM_STEPS = 4
ACCEPTANCES = (0.8, 0.7, 0.6)
"""Accepted proposals over proposals, where `NUM_STEPS` are made."""
HOPELESS = 0.0
CACHE_LEN = 131_072
_WARM_UP_TOKENS = 128
_TINY_TOKENS = 40


def specdec_rows(job: Job, rows: Rows, model: str) -> None:
    """Every number of requests with every acceptance, and how often answers in bf16 part from those without."""
    prefix = f"{model}/bf16/specdec"
    with rows.trying(prefix), drafted(job, model) as bench:
        rows.say(f"{prefix}: loaded")
        plain = {}
        for n in job.counts:
            with rows.trying(f"{prefix} n={n} plain"):
                bench.warm_up(n)
                plain[n] = bench.steady(n, BASE)
                rows.add(f"{prefix} n={n} plain", tok_s=plain[n].tok_s)
                bench.replayed(n, plain[n], ACCEPTANCES[0], bench.num_output(n, _WARM_UP_TOKENS))
                for acceptance in ACCEPTANCES:
                    _row(bench, rows, prefix, n, plain[n], acceptance)
        for n, without in plain.items():  # after all others: what is learnt from hopeless proposals holds for a while
            bench.replayed(n, without, HOPELESS, bench.num_output(n, _WARM_UP_TOKENS))
            _row(bench, rows, prefix, n, without, HOPELESS)
        with rows.trying(f"{prefix} divergence"):
            rows.add(f"{prefix} divergence", **bench.divergence(min(8, max(job.counts))))


@contextmanager
def drafted(job: Job, model: str) -> Iterator[DraftBench]:
    """A backbone with a draft, an instance that uses it and one that does not."""
    cache_len = CACHE_LEN if not job.is_tiny else 4096
    spec = SpawnSpec(path="", kv_cache_len=cache_len, num_draft_steps=NUM_STEPS)
    with opened(model, DRAFTED, spec, config_of(job), draft=DRAFTS[model]) as driver:
        driver.spawn(BASE, SpawnSpec(path=path_of(driver, DRAFTED)))
        yield DraftBench(driver, job)


@dataclass(frozen=True)
class Steady:
    """What was seen while every request generated."""

    tok_s: float
    num_steps: float
    """Proposals that the engine chose for each request, in the mean over steps."""
    acceptance: float
    tokens: list[list[int]]


class DraftBench(Bench):
    """Requests to two instances on one backbone, one of them with a draft."""

    def __init__(self, driver: Driver, job: Job) -> None:
        super().__init__(driver, job)
        self._rng = np.random.default_rng(1)

    def num_output(self, n: int, most: int | None = None) -> int:
        """Tokens of an answer, so that the cache has room for all."""
        num_output = _TINY_TOKENS if self.job.is_tiny else self.job.num_output(n)
        if n == 1:  # one answer has few steps to be the mean of
            num_output *= 2
        elif n > 64:
            num_output //= 2
        return num_output if most is None else min(num_output, most)

    def draw(self, n: int) -> list[np.ndarray]:
        """Prompts that leave room for the answers, were the cache full of others as long."""
        room = self.engine.backbone.pool.num_blocks * self.engine.backbone.pool.block_size // n
        return self.prompts.draw(n, min(self.job.num_input, room - 2 * self.num_output(n)))

    def steady(self, n: int, model: str, num_output: int | None = None, replay: Replay | None = None) -> Steady:
        """Tokens a second from where all requests have some tokens until the first one is complete."""
        num_output = self.num_output(n) if num_output is None else num_output
        prompts = self.draw(n)
        ids = self.start(prompts, num_output, (model,))
        tokens: dict[int, list[int]] = {seq_id: [] for seq_id in ids}
        if replay is not None:
            replay.follow(ids)
        chosen: list[int] = []
        began, first, before = 0.0, 0, self._proposals()
        while self.engine.has_work:
            for output in self.driver.step():
                tokens[output.seq_id] += output.token_ids
            sizes = [len(answer) for answer in tokens.values()]
            if chosen and max(sizes) >= num_output:
                break
            if min(sizes) >= 2:
                if not chosen:
                    began, first, before = time.perf_counter(), sum(sizes), self._proposals()
                chosen.append(self.engine._drafts.choice.num_steps)
        seconds = time.perf_counter() - began
        num_tokens = sum(map(len, tokens.values())) - first
        proposed, accepted = (after - earlier for after, earlier in zip(self._proposals(), before, strict=True))
        self.finish(tokens)
        acceptance = accepted / proposed if proposed else 0.0
        return Steady(num_tokens / seconds, mean(chosen), acceptance, list(tokens.values()))

    def finish(self, tokens: dict[int, list[int]]) -> None:
        """To the last token of those that go on."""
        while self.engine.has_work:
            for output in self.driver.step():
                tokens[output.seq_id] += output.token_ids

    def replayed(self, n: int, plain: Steady, acceptance: float, num_output: int | None = None) -> Steady:
        """With a draft whose proposals are right that often, and a target that answers what was recorded."""
        with self.replaying(plain.tokens, acceptance) as replay:
            return self.steady(n, DRAFTED, num_output, replay)

    def divergence(self, n: int) -> dict[str, float]:
        """Greedy answers with a draft beside those without: the share that differs somewhere, and where it first does.

        The target says for itself what comes next, be the proposals right or wrong.
        """
        prompts, num_output = self.draw(n), self.num_output(n)
        plain = self.run(prompts, num_output).tokens
        again = self.run(prompts, num_output).tokens
        with self.replaying(plain, ACCEPTANCES[0], forced=False) as replay:
            ids = self.start(prompts, num_output, (DRAFTED,))
            replay.follow(ids)
            tokens: dict[int, list[int]] = {seq_id: [] for seq_id in ids}
            self.finish(tokens)
        drafted = list(tokens.values())
        num_parted = sum(map(_differs, drafted, plain))
        num_compared = sum(map(_common, drafted, plain)) + num_parted
        return {
            "answers": n,
            "differ": num_parted / n,
            "per token": num_parted / num_compared,
            "tokens before": mean(map(_common, drafted, plain)),
            "of": num_output,
            "differ without a draft": sum(map(_differs, again, plain)) / n,
        }

    @contextmanager
    def replaying(self, recorded: list[list[int]], acceptance: float, *, forced: bool = True) -> Iterator[Replay]:
        """Proposals come from recorded answers, right that often; forced: so do the answers."""
        share = right_share(acceptance, NUM_STEPS)
        vocab_size = self.engine.backbone.decoder.config.vocab_size
        proposed = [self._proposed(answer, share, vocab_size) for answer in recorded]
        runner = self.engine._runner
        proposer, sampler = runner.proposer, runner._sampler
        assert proposer is not None, "the backbone has a draft"
        replay = Replay(sampler, self.engine.backbone.device, proposed, recorded if forced else None)
        runner.proposer, runner._sampler = ReplayedProposer(proposer, replay), replay  # type: ignore[assignment]
        try:
            yield replay
        finally:
            runner.proposer, runner._sampler = proposer, sampler

    def _proposed(self, answer: list[int], share: float, vocab_size: int) -> list[int]:
        """The recorded tokens; in so many places, drawn at random, the next one of the vocabulary."""
        wrong = self._rng.permutation(len(answer)) >= round(share * len(answer))
        return np.where(wrong, (np.array(answer) + 1) % vocab_size, answer).tolist()

    def _proposals(self) -> tuple[float, float]:
        counters = self.engine.stats().by_model.get(DRAFTED, {})
        return counters.get("drafted_tokens", 0.0), counters.get("accepted_tokens", 0.0)


class Replay:
    """In the place of an engine's sampler: does its work, then says what was recorded."""

    def __init__(
        self,
        sampler: Sampler,
        device: torch.device,
        proposed: Sequence[Sequence[int]],
        sampled: Sequence[Sequence[int]] | None,
    ) -> None:
        """proposed: by the draft, for each place of each answer. sampled: by the target; None leaves it its own.

        The target is told because random weights make two tokens about as likely every so often: in bf16 it would soon
        leave what was recorded, with proposals and without, and all that is proposed from there on would be wrong.
        """
        self._sampler = sampler
        self._device = device
        self._proposed = proposed
        self._sampled = sampled
        self._place: dict[int, int] = {}

    def follow(self, seq_ids: Sequence[int]) -> None:
        """These requests get the recorded answers, in order."""
        self._place = {seq_id: place for place, seq_id in enumerate(seq_ids)}

    def __call__(self, logits_RV: Tensor, rows: tuple[Work, ...], *, drafts: bool = False) -> Tensor:
        """What the engine's sampler takes and gives."""
        ids_R = self._sampler(logits_RV, rows, drafts=drafts)
        return ids_R if self._sampled is None else self._told(self._sampled, rows)

    def proposed(self, rows: tuple[Work, ...]) -> Tensor:
        """What is proposed to each row."""
        return self._told(self._proposed, rows)

    def _told(self, answers: Sequence[Sequence[int]], rows: tuple[Work, ...]) -> Tensor:
        ids = [answers[self._place[work.sequence.request.seq_id]][_num_generated(work)] for work in rows]
        return send(np.array(ids, dtype=np.int64), self._device)


class ReplayedProposer(Proposer):
    """Runs a draft, then proposes what was recorded."""

    def __init__(self, proposer: Proposer, replay: Replay) -> None:
        super().__init__(proposer.model, proposer.steps, replay)  # type: ignore[arg-type]
        self._replay = replay

    def __call__(self, batch: Batch) -> None:
        """One pass."""
        super().__call__(batch)
        if batch.generating:
            slots_R = send(batch.sample_slots_R, self.model.last_ids.device)
            remember(self.model.last_ids, slots_R, self._replay.proposed(batch.generating))


def _row(bench: DraftBench, rows: Rows, prefix: str, n: int, plain: Steady, acceptance: float) -> None:
    key = f"{prefix} n={n} acceptance {acceptance}"
    with rows.trying(key):
        seen = bench.replayed(n, plain, acceptance)
        ratio = seen.tok_s / plain.tok_s
        rows.add(key, ratio=ratio, tok_s=seen.tok_s, steps=seen.num_steps, accepted=seen.acceptance)


def right_share(acceptance: float, num_steps: int) -> float:
    """How often a proposal must be right where all before were, so that so many of all `num_steps` are accepted."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        accepted = sum(middle**place for place in range(1, num_steps + 1)) / num_steps
        low, high = (middle, high) if accepted < acceptance else (low, middle)
    return (low + high) / 2


def _num_generated(work: Work) -> int:
    return work.start + work.count - work.sequence.num_prompt


def _common(found: Sequence[int], known: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    return next((place for place, pair in enumerate(zip(found, known, strict=True)) if pair[0] != pair[1]), len(known))


def _differs(found: Sequence[int], known: Sequence[int]) -> bool:
    return _common(found, known) < len(known)
