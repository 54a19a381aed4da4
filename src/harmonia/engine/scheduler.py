"""Who runs in the next step.

One budget of tokens per step: first every sequence that generates gets one, then chunks of prompts (a smaller share
while something generates), running ones before waiting ones, first come first served. When blocks run out, the newest
running sequence is preempted; its blocks stay in the prefix index, so that coming back costs little. A request at the
head of the queue that cannot start is overtaken for `max_bypass_s` at most.
"""

from __future__ import annotations

import bisect
import heapq
import time

import numpy as np

from harmonia.cache import BlockPool, SessionTable
from harmonia.config import SchedulerConfig
from harmonia.engine.batch import Schedule, Work
from harmonia.engine.drafting import DraftScheduler
from harmonia.engine.sequence import Sequence, State
from harmonia.errors import OverloadedError

_MAX_BYPASS_TRIES = 16
"""Waiting sequences tried per step after one could not start; each try costs a walk through the prefix index."""


def _arrival(sequence: Sequence) -> tuple[float, int]:
    return sequence.request.arrival_s, sequence.request.seq_id


def _may_expire(sequence: Sequence) -> bool:
    return sequence.state is not State.FINISHED and sequence.awaits_first_token


class Scheduler:
    """Queue, running sequences and their blocks."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        sessions: SessionTable,
        *,
        max_seq_len: int,
        prefix_caching: bool,
        drafts: DraftScheduler,
    ) -> None:
        assert config.max_batch_tokens is not None and config.max_prefill_tokens is not None, "the plan resolves them"
        self.pool = pool
        self.sessions = sessions
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.admits_new = True
        """False while an update of the weights waits for what has begun to end."""
        self._config = config
        self._budget = config.max_batch_tokens
        self._prefill_budget = config.max_prefill_tokens
        self._prefix_caching = prefix_caching
        self._drafts = drafts
        self._block_table = np.zeros((config.max_running, -(-max_seq_len // pool.block_size)), dtype=np.int32)
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self._pending: dict[bytes, Sequence] = {}
        self._head_blocked_since: float | None = None
        self._deadlines: list[tuple[float, int, Sequence]] = []

    # ------------------------------------------------------------------------------------------ the queue

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, in the order of arrival; raises `OverloadedError` when the queue is full."""
        if len(self.waiting) >= self._config.max_queue:
            raise OverloadedError(
                f"the queue is full: {len(self.waiting)} requests wait (max_queue); retry later",
                retry_after_s=1.0,
            )
        bisect.insort(self.waiting, sequence, key=_arrival)
        self._drafts.add(sequence)
        deadline = sequence.request.ttft_deadline_s
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, sequence.request.seq_id, sequence))

    @property
    def next_deadline_s(self) -> float | None:
        """Monotonic time of the earliest deadline that may still fire."""
        while self._deadlines and not _may_expire(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> list[Sequence]:
        """Sequences whose first token is overdue."""
        overdue = []
        while (deadline := self.next_deadline_s) is not None and deadline <= now:
            overdue.append(heapq.heappop(self._deadlines)[2])
        return overdue

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if sequence.state is State.FINISHED:
            return
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._vacate(sequence)
        else:
            self.waiting.remove(sequence)
        self._drafts.remove(sequence)
        sequence.state = State.FINISHED

    def publish(self, work: Work) -> None:
        """Index the blocks that a finished step completed."""
        sequence = work.sequence
        num_full = min(work.start + work.count, sequence.num_tokens) // self.pool.block_size
        if num_full <= sequence.num_published or not self._prefix_caching:
            return
        if sequence.epoch != work.epoch or sequence.state is not State.RUNNING:
            return
        sequence.extend_chain(self.pool.block_size)
        for index in range(sequence.num_published, num_full):
            self.pool.publish(sequence.blocks[index], sequence.chain[index])
            self._drafts.publish(sequence, index)
            self._unpend(sequence, index)
        sequence.num_published = num_full

    # ------------------------------------------------------------------------------------------- one step

    @property
    def awaits_masks(self) -> bool:
        """Some running sequence could go on if its grammar's mask were there."""
        return any(sequence.lacks_mask and not sequence.held for sequence in self.running)

    def needs_results(self) -> bool:
        """Choose how many tokens the next step proposes; whether what is on its way must be read before.

        To be asked once, before `schedule`.
        """
        return self._drafts.choose(len(self.running) + len(self.waiting), self._config.max_running)

    def schedule(self) -> Schedule | None:
        """Who runs in the next step, or None when nothing can."""
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for sequence in self.running:
            if not sequence.is_blocked:
                (decodes if sequence.num_remaining == 1 else prefills).append(sequence)
        num_preemptions = self.num_preemptions
        self._drafts.begin()
        work, budget = self._continue_each(decodes, self._budget)
        # While others generate, a long prompt must not stall them.
        budget = min(budget, self._prefill_budget) if work else self._budget
        chunks, budget = self._continue_each(prefills, budget)
        work += chunks
        if num_preemptions != self.num_preemptions:
            work = [item for item in work if self._still_holds(item)]
        self._admit(work, budget)
        if not work:
            return None
        drafts = self._drafts
        return Schedule(
            work, self._block_table, self.pool.block_size, drafts.passes(work), drafts.choice, drafts.is_typical
        )

    def _continue_each(self, sequences: list[Sequence], budget: int) -> tuple[list[Work], int]:
        """What they do in this step, and the budget that is left."""
        work: list[Work] = []
        for sequence in sequences:
            if budget == 0:
                break
            item = self._continue(sequence, budget)
            if item is not None:
                work.append(item)
                budget -= item.count
        return work, budget

    @staticmethod
    def _still_holds(item: Work) -> bool:
        """False for work of a sequence that was preempted later in the same step."""
        if item.sequence.epoch == item.epoch:
            return True
        item.sequence.num_sampling -= item.num_sampled
        return False

    def _continue(self, sequence: Sequence, budget: int) -> Work | None:
        if sequence.state is not State.RUNNING:
            return None  # preempted for an older one in this very step
        num_drafted = self._num_drafted(sequence, budget - 1) if self._drafts.choice.num_steps else 0
        count = min(sequence.num_remaining, budget) + num_drafted
        needed = self._blocks_needed(sequence, count)
        while needed and needed > self.pool.num_available:
            victim = self._victim()
            self._preempt(victim)
            if victim is sequence:
                return None
        return self._take(sequence, count, needed, num_drafted)

    def _num_drafted(self, sequence: Sequence, room: int) -> int:
        """Proposals for a sequence: they must neither crowd out prompts' chunks nor cost anybody's blocks."""
        if sequence.num_remaining != 1:
            return 0
        num_drafted = self._drafts.propose(sequence, room)
        return num_drafted if self._blocks_needed(sequence, 1 + num_drafted) <= self.pool.num_available else 0

    def _victim(self) -> Sequence:
        """The newest sequence, one that is paused before one that runs."""
        return next((sequence for sequence in reversed(self.running) if sequence.held), self.running[-1])

    def _admit(self, work: list[Work], budget: int) -> None:
        """Start waiting sequences while budget, slots and blocks last."""
        if not self.waiting:
            self._head_blocked_since = None
            return
        now = time.monotonic()
        head_blocked, num_tries = False, 0
        for index, sequence in enumerate(list(self.waiting)):
            if budget == 0 or not self._free_slots or num_tries == _MAX_BYPASS_TRIES:
                break
            if sequence.is_blocked or not (self.admits_new or sequence.has_begun):
                continue
            count = self._try_start(sequence, budget)
            if count:
                sequence.started_s = sequence.started_s or now
                work.append(self._take(sequence, count, self._blocks_needed(sequence, count)))
                budget -= count
                continue
            num_tries += 1
            head_blocked |= index == 0
            if self._head_waited_too_long(now, head_blocked):
                break
        self._head_blocked_since = (self._head_blocked_since or now) if head_blocked else None

    def _head_waited_too_long(self, now: float, head_blocked: bool) -> bool:
        since = self._head_blocked_since
        return head_blocked and since is not None and now - since > self._config.max_bypass_s

    def _try_start(self, sequence: Sequence, budget: int) -> int:
        """Move a waiting sequence to the running ones: tokens of its first chunk after prefix hits, 0 if it waits."""
        hits = self._match(sequence)
        if hits is None:
            return 0
        num_hit = len(hits) * self.pool.block_size
        count = min(sequence.num_total - num_hit, budget)
        needed = -(-(num_hit + count) // self.pool.block_size) - len(hits)
        reserve = self._config.reserve_blocks if self.running else 0
        self.pool.hold(hits)
        self._reclaim_paused(needed + reserve)
        if needed + reserve > self.pool.num_available:
            self.pool.release(hits)
            return 0
        self.waiting.remove(sequence)
        self._occupy(sequence, hits)
        return count

    def _reclaim_paused(self, needed: int) -> None:
        """Paused sequences must not keep others from starting."""
        while needed > self.pool.num_available and self.running and self._victim().held:
            self._preempt(self._victim())

    def _match(self, sequence: Sequence) -> list[int] | None:
        """Cached blocks to start from; None when a running sequence is about to compute the next one."""
        if not self._prefix_caching:
            return []
        sequence.extend_chain(self.pool.block_size)
        usable = sequence.chain[: sequence.max_cached // self.pool.block_size]
        hits = self.pool.match(usable)
        if len(hits) < len(usable) and usable[len(hits)] in self._pending:
            return None
        return hits

    # ------------------------------------------------------------------------------------------- movements

    def _occupy(self, sequence: Sequence, hits: list[int]) -> None:
        size = self.pool.block_size
        sequence.state = State.RUNNING
        sequence.slot = self._free_slots.pop()
        sequence.blocks = hits
        sequence.num_computed = len(hits) * size
        sequence.num_draft_computed = self._drafts.num_hits(hits) * size
        sequence.num_published = len(hits)
        self._block_table[sequence.slot, : len(hits)] = hits
        bisect.insort(self.running, sequence, key=_arrival)
        for key in sequence.chain[len(hits) :]:
            self._pending.setdefault(key, sequence)
        if sequence.epoch == 0:
            sequence.cached_tokens = sequence.num_computed
            self.num_prefix_hits += sequence.num_computed
            self.num_prefix_queries += sequence.num_prompt

    def _take(self, sequence: Sequence, count: int, num_blocks: int, num_drafted: int = 0) -> Work:
        """Give a running sequence the blocks that its next `count` tokens need and count them as computed."""
        if num_blocks:
            have = len(sequence.blocks)
            sequence.blocks += self.pool.allocate(num_blocks)
            self._block_table[sequence.slot, have : have + num_blocks] = sequence.blocks[have:]
        start = sequence.num_computed
        samples = count - num_drafted == sequence.num_remaining
        sequence.num_computed += count
        if samples:
            sequence.num_sampling += 1 + num_drafted
        return Work(sequence, start, count, sequence.epoch, samples, num_drafted, apart=num_drafted > 0)

    def _blocks_needed(self, sequence: Sequence, count: int) -> int:
        num_blocks = -(-(sequence.num_computed + count) // self.pool.block_size)
        return num_blocks - len(sequence.blocks) if num_blocks > len(sequence.blocks) else 0

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._vacate(sequence)
        bisect.insort(self.waiting, sequence, key=_arrival)

    def _vacate(self, sequence: Sequence) -> None:
        """Free the slot and the blocks; the session keeps its claim on what was published."""
        for index in range(sequence.num_published, len(sequence.chain)):
            self._unpend(sequence, index)
        if sequence.request.session_id is not None and sequence.num_published:
            self.sessions.update(sequence.request.session_id, sequence.chain[: sequence.num_published])
        self._free_slots.append(sequence.slot)
        self.pool.release(sequence.forget_progress())

    def _unpend(self, sequence: Sequence, index: int) -> None:
        key = sequence.chain[index]
        if self._pending.get(key) is sequence:
            del self._pending[key]
