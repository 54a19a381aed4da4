"""Which tokens are proposed in a step, and what the draft must compute for that.

The draft's keys and values stand in the same blocks as the target's, in a cache of its own: whatever happens to a
sequence happens to both. The draft may stay behind, and a block that it never computed counts as not cached for it;
that costs acceptance, never a right answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence as Items

import numpy as np

from harmonia.cache import BlockPool
from harmonia.engine.batch import Schedule, Work
from harmonia.engine.ngram import look_up
from harmonia.engine.sequence import Drafter, Sequence
from harmonia.engine.speculation import NO_PROPOSALS, Choice, Speculation
from harmonia.protocol.instances import MAX_DRAFT_STEPS

_CATCH_UP_TOKENS = 512
"""Tokens of a sequence that the draft computes at most in one step of what it stayed behind; in a trial, of all."""
_FEW_TOKENS = MAX_DRAFT_STEPS
"""So many tokens that the draft lacks are rows of their own, which run as one captured graph: one or two after a step
with proposals, some more after a trial without."""


class DraftScheduler:
    """The share of proposals in scheduling."""

    def __init__(self, pool: BlockPool, *, draft_len: int, max_tokens: int, max_rows: int) -> None:
        """draft_len: positions that the draft knows; 0 without one.

        max_tokens: of one pass of it. max_rows: that one step of the target samples from.
        """
        self._speculations = defaultdict[frozenset[Drafter], Speculation](lambda: Speculation(MAX_DRAFT_STEPS))
        """By who proposes: what a grammar forces is right far more often than what a draft guesses, and costs less."""
        self._pool = pool
        self._draft_len = draft_len
        self._max_tokens = max_tokens
        self._max_rows = max_rows
        self._wanted = Counter[tuple[Drafter, int]]()
        """Queued or running sequences with a draft, by who proposes and how many they get at most."""
        self._num_insisting = 0
        """Of these, those that want proposals whether they pay or not."""
        self._has_draft = np.zeros(0, dtype=bool)
        """Blocks in which the draft's half is computed, too."""
        # Of the step that is being put together, or of the last one:
        self._choice = NO_PROPOSALS
        self._room = max_tokens
        """Tokens that the draft may still take in."""
        self._rows_left = max_rows
        """Proposals that there is room for."""
        self._is_typical = True
        self._was_asked = False
        """Some sequence was to get proposals: those under a grammar sit out steps while their masks are made."""
        self._last = NO_PROPOSALS
        """What was chosen for the last step that was measured."""

    @property
    def has_sequences(self) -> bool:
        """Some sequence has a draft, whether tokens are proposed at present or not."""
        return bool(self._wanted)

    @property
    def choice(self) -> Choice:
        """Proposals for each sequence with a draft in the step that is being put together."""
        return self._choice

    @property
    def is_typical(self) -> bool:
        """Of this step: all sequences with a draft got proposals, and the draft lacked little of them."""
        return self._is_typical and self._was_asked == (self._choice.num_steps > 0)

    def add(self, sequence: Sequence) -> None:
        """It came into the queue."""
        if sequence.drafter is not None and sequence.may_draft:
            self._wanted[sequence.drafter, sequence.draft_limit] += 1
            self._num_insisting += sequence.request.always_draft

    def remove(self, sequence: Sequence) -> None:
        """It ended."""
        if sequence.drafter is not None and sequence.may_draft:
            self._wanted -= Counter([(sequence.drafter, sequence.draft_limit)])
            self._num_insisting -= sequence.request.always_draft

    def choose(self, num_known: int, max_running: int) -> bool:
        """Choose how many tokens the next step proposes; to be asked once, before it is put together.

        num_known: sequences that run or wait. True if the results of the last step must be read before: proposals in
        it, or in the next one, so that nobody knows yet where an answer goes on.
        """
        was_active, self._choice = self._choice.num_steps > 0, NO_PROPOSALS
        if self._wanted:
            num_sequences = min(num_known, max_running)
            most = min(max(limit for _, limit in self._wanted), self._max_rows // num_sequences - 1)
            share = self._wanted.total() / num_known
            drafters = frozenset(drafter for drafter, _ in self._wanted)
            choice = Choice(num_sequences, max(0, most))
            if not self._num_insisting:
                choice = self._speculations[drafters].choose(num_sequences, share, most)
            self._choice = choice._replace(drafters=drafters)
        return was_active or self._choice.num_steps > 0

    def begin(self) -> None:
        """The step that was chosen for is being put together."""
        choice, self._is_typical, self._was_asked = self._choice, True, False
        self._room = self._max_tokens if choice.in_earnest else min(self._max_tokens, _CATCH_UP_TOKENS)
        self._rows_left = self._max_rows - choice.num_sequences

    def num_wanted(self, sequence: Sequence) -> int:
        """Proposals to ask for with the next masks of a sequence under a grammar, going by what was chosen last."""
        return min(self._choice.num_steps, sequence.max_draft_steps)

    def propose(self, sequence: Sequence, room: int) -> int:
        """Proposals for a sequence whose next token is due, with room for so many."""
        wanted = min(self._choice.num_steps, sequence.max_draft_steps)
        self._is_typical &= wanted <= self._rows_left
        num_steps = min(wanted, room, self._rows_left)
        if num_steps <= 0 or sequence.num_sampling:
            return 0
        self._was_asked = True
        num_steps = self._find(sequence, num_steps)
        self._rows_left -= num_steps
        return num_steps

    def _find(self, sequence: Sequence, num_steps: int) -> int:
        """How many proposals there are, up to so many; what need not be computed is written behind the known tokens."""
        if sequence.drafter is Drafter.MODEL:
            return self._take_in(sequence, num_steps)
        known = sequence.num_tokens
        if sequence.drafter is Drafter.NGRAM:
            found = look_up(sequence.tokens[:known], num_steps)
        else:
            found = sequence.given[:num_steps]
            if not sequence.num_asked:  # a trial began after the masks were made: it says nothing of proposals
                self._is_typical = False
                return 0
        sequence.tokens[known : known + len(found)] = found
        if not len(found):
            self.note(num_steps, 0)  # as good as wrong
        return len(found)

    def _take_in(self, sequence: Sequence, num_steps: int) -> int:
        """Proposals of the draft, if it gets to know all tokens of the sequence in this step."""
        if sequence.num_tokens > self._draft_len:
            return 0
        num_missing = sequence.num_tokens - sequence.num_draft_computed
        self._is_typical &= num_missing <= _FEW_TOKENS
        if num_missing > min(_CATCH_UP_TOKENS, self._room):
            return 0
        self._room -= num_missing
        return min(num_steps, self._draft_len + 1 - sequence.num_tokens)

    def passes(self, work: Items[Work]) -> tuple[list[Work], ...]:
        """What the draft computes in this step: what it stayed behind, then one proposal after another."""
        if not self._choice.num_steps:
            return ()
        drafted = [item for item in work if item.sequence.drafter is Drafter.MODEL]
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
        return (first, *later) if first else ()

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
        apart = 1 < count <= _FEW_TOKENS
        return Work(sequence, first, count, item.epoch, samples=item.num_drafted > 0, apart=apart)

    def observe(self, schedule: Schedule, seconds: float, num_tokens: int) -> None:
        """A step of decodes took so long and brought so many tokens."""
        # Steps overlap only while nothing is proposed: what a change between the two costs is not a step's own.
        is_typical = schedule.is_typical and schedule.choice.num_steps == self._last.num_steps
        self._last = schedule.choice
        if self._wanted and schedule.choice.num_sequences:
            speculation = self._speculations[schedule.choice.drafters]
            speculation.observe(schedule.choice, seconds, num_tokens / len(schedule.work), is_typical=is_typical)

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """Of the proposals for a sequence, so many were right."""
        self._speculations[self._choice.drafters].note(num_proposed, num_accepted)

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
        if sequence.drafter is not Drafter.MODEL and not len(self._has_draft):
            return
        if len(self._has_draft) < self._pool.num_blocks:
            grown = self._pool.num_blocks - len(self._has_draft)
            self._has_draft = np.concatenate((self._has_draft, np.zeros(grown, dtype=bool)))
        is_there = sequence.num_draft_computed >= (index + 1) * self._pool.block_size
        self._has_draft[sequence.blocks[index]] = is_there
