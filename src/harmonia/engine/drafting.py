"""Which tokens are proposed in a step, and what the draft must compute for that.

The draft's keys and values stand in the same blocks as the target's, in a cache of its own: whatever happens to a
sequence happens to both. The draft may stay behind, and a block that it never computed counts as not cached for it;
that costs acceptance, never a right answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from harmonia.cache import BlockPool
from harmonia.engine.batch import Work
from harmonia.engine.ngram import look_up
from harmonia.engine.sequence import Drafter, Sequence
from harmonia.engine.speculation import Speculation

_CATCH_UP_TOKENS = 512
"""Tokens that the draft computes at most in one step of what it stayed behind."""


class DraftScheduler:
    """The share of proposals in scheduling."""

    def __init__(self, speculation: Speculation, pool: BlockPool, *, draft_len: int, max_tokens: int) -> None:
        """draft_len: positions that the draft knows; 0 without one. max_tokens: of one pass of it."""
        self._speculation = speculation
        self._pool = pool
        self._draft_len = draft_len
        self._max_tokens = max_tokens
        self._room = max_tokens
        """Tokens that the draft may still take in, in the step that is being put together."""
        self._num_sequences = 0
        """Queued or running ones with a draft."""
        self._num_steps = speculation.max_steps
        self._has_draft = np.zeros(0, dtype=bool)
        """Blocks in which the draft's half is computed, too."""

    @property
    def is_active(self) -> bool:
        """Tokens are proposed at present, so a step must know what the one before it brought."""
        return self._num_sequences > 0 and self._num_steps > 0

    @property
    def has_sequences(self) -> bool:
        """Some sequence has a draft, whether tokens are proposed at present or not."""
        return self._num_sequences > 0

    @property
    def num_steps(self) -> int:
        """Proposals for each sequence with a draft in the step that is being put together."""
        return self._num_steps if self._num_sequences else 0

    def add(self, sequence: Sequence) -> None:
        """It came into the queue."""
        self._num_sequences += sequence.instance.drafter is not None

    def remove(self, sequence: Sequence) -> None:
        """It ended."""
        self._num_sequences -= sequence.instance.drafter is not None

    def begin(self, decodes: Items[Sequence]) -> None:
        """A step with these decodes is being put together."""
        self._room = self._max_tokens
        if self._num_sequences and decodes:
            num_drafting = sum(sequence.instance.drafter is not None for sequence in decodes)
            self._num_steps = self._speculation.num_steps(len(decodes), num_drafting / len(decodes))

    def propose(self, sequence: Sequence, room: int) -> int:
        """Proposals for a sequence whose next token is due, with room for so many."""
        num_steps = min(self._num_steps, sequence.max_draft_steps, room)
        if num_steps <= 0 or sequence.num_sampling:
            return 0
        if sequence.instance.drafter is Drafter.MODEL:
            num_missing = sequence.num_tokens - sequence.num_draft_computed
            if num_missing > min(_CATCH_UP_TOKENS, self._room) or sequence.num_tokens > self._draft_len:
                return 0
            self._room -= num_missing
            return min(num_steps, self._draft_len + 1 - sequence.num_tokens)
        known = sequence.num_tokens
        found = look_up(sequence.tokens[:known], num_steps)
        sequence.tokens[known : known + len(found)] = found
        if not len(found):
            self._speculation.note(num_steps, 0)  # as good as wrong
        return len(found)

    def passes(self, work: Items[Work]) -> list[list[Work]]:
        """What the draft computes in this step: what it stayed behind, then one proposal after another."""
        if not self.is_active:
            return []
        drafted = [item for item in work if item.sequence.instance.drafter is Drafter.MODEL]
        if not drafted:
            return []
        first = [catch_up for item in drafted if (catch_up := self._catch_up(item)) is not None]
        proposing = [item for item in drafted if item.num_drafted]
        for item in proposing:
            item.sequence.num_draft_computed = item.start + item.num_drafted
        later = [
            [
                Work(item.sequence, item.start + place, 1, item.epoch, True, proposal=place)
                for item in proposing
                if item.num_drafted > place
            ]
            for place in range(1, max((item.num_drafted for item in proposing), default=1))
        ]
        return [first, *later] if first else []

    def _catch_up(self, item: Work) -> Work | None:
        """The tokens of a sequence that the draft lacks, all of them where it then proposes."""
        sequence, first = item.sequence, item.sequence.num_draft_computed
        stop = item.start + item.count - item.num_drafted
        count = stop - first
        if not item.num_drafted:
            # What is sampled in this very step is not known yet.
            known = min(sequence.num_tokens, self._draft_len) - first
            count = min(count, max(item.count, _CATCH_UP_TOKENS), known, self._room)
            if count <= 0:
                return None
            self._room -= count
        sequence.num_draft_computed += count
        return Work(sequence, first, count, item.epoch, samples=item.num_drafted > 0)

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """Of the proposals for a sequence, so many were right."""
        self._speculation.note(num_proposed, num_accepted)

    def settle(self, sequence: Sequence) -> None:
        """After a step: what was refused is not in the draft's cache."""
        sequence.num_draft_computed = min(sequence.num_draft_computed, sequence.num_tokens - 1)

    def num_hits(self, blocks: Items[int]) -> int:
        """Leading blocks of a hit in which the draft's half is there."""
        if not len(self._has_draft):
            return 0
        missing = np.flatnonzero(~self._has_draft[list(blocks)])
        return int(missing[0]) if len(missing) else len(blocks)

    def publish(self, sequence: Sequence, index: int) -> None:
        """A block of a sequence may be found by others from now on."""
        if sequence.instance.drafter is not Drafter.MODEL and not len(self._has_draft):
            return
        if len(self._has_draft) < self._pool.num_blocks:
            grown = self._pool.num_blocks - len(self._has_draft)
            self._has_draft = np.concatenate((self._has_draft, np.zeros(grown, dtype=bool)))
        is_there = sequence.num_draft_computed >= (index + 1) * self._pool.block_size
        self._has_draft[sequence.blocks[index]] = is_there
