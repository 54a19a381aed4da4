"""One generation in flight."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from harmonia.cache import extend_chain
from harmonia.engine.requests import SequenceRequest, TokenScore, unpack_ids
from harmonia.protocol import instances
from harmonia.protocol.sampling import SamplingParams
from harmonia.train.scalar_head import ScalarHead

COLDEST = 1e-5
"""Colder is greedy: dividing logits by less overflows fp32, and the best token is all but certain anyway."""


class Drafter(Enum):
    """Who proposes tokens."""

    MODEL = "model"
    NGRAM = instances.NGRAM
    """What followed the last tokens when they stood in the prompt or the answer before."""
    GRAMMAR = "grammar"
    """Whoever holds the grammar that the answer follows."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What a request addresses: the bare backbone or an adapter on it, at a version."""

    key: str
    version: int
    root: bytes
    """Root of its chains in the prefix index."""
    adapter_slot: int | None = None
    parent: str | None = None
    created: int = 0
    """Unix seconds."""
    head: ScalarHead | None = None
    """Of a scoring model, frozen at this version."""
    lineage: str | None = None
    """What tells this adapter from others that bear or bore its name; None without an adapter."""
    is_snapshot: bool = False
    drafter: Drafter | None = None
    """Who proposes its tokens."""
    num_draft_steps: int = 0
    """Tokens that are proposed at a time, at most."""

    @property
    def is_adapter(self) -> bool:
        """It differs from the bare backbone."""
        return self.adapter_slot is not None


class State(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, blocks and progress of one request.

    `tokens[:num_tokens]` are known; `num_sampling` more were launched and not read yet. The cache holds the first
    `num_computed`, counting those of steps still in flight.
    """

    request: SequenceRequest
    instance: Instance
    tokens: np.ndarray
    num_prompt: int
    num_tokens: int
    max_total: int
    stop_ids: frozenset[int]
    seed: int
    is_greedy: bool
    """Its next token is the likeliest one, and nothing edits the logits before."""
    generates: bool
    """Tokens are sampled, not only read."""
    reads_more: bool
    """Something is read of it beside the next tokens and their log-probabilities."""
    needs_history: bool
    """Its penalties count the tokens so far, so the last one must have been read."""
    state: State = State.WAITING
    slot: int = -1
    """Row of the sequence in the arrays of the running ones."""
    epoch: int = 0
    """Counts preemptions; results of an earlier epoch must not publish blocks."""
    num_computed: int = 0
    num_draft_computed: int = 0
    """Tokens that the draft's cache holds; it may stay behind."""
    num_sampling: int = 0
    blocks: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    """Keys of the full blocks of the known tokens."""
    num_published: int = 0
    held: bool = False
    """The consumer asked for a pause."""
    masks: dict[int, bytes] = field(default_factory=dict)
    """Grammar masks by number of generated tokens before them: for the next token, and behind each of `given`."""
    given: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """Tokens that were proposed with the masks."""
    num_asked: int = 0
    """Proposals that were asked for with these masks."""
    started_s: float | None = None
    """When it first ran."""
    last_token_s: float | None = None
    cached_tokens: int = 0
    prompt_scores: list[TokenScore] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    """What a `score` request read so far."""

    @staticmethod
    def create(request: SequenceRequest, instance: Instance, eos_ids: frozenset[int], max_seq_len: int) -> Sequence:
        """A waiting sequence with room for its longest answer."""
        prompt = unpack_ids(request.token_ids)
        sampling = request.sampling
        room = max_seq_len - len(prompt) if request.generates else 0
        max_new = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        tokens = np.empty(len(prompt) + max_new, dtype=np.int32)
        tokens[: len(prompt)] = prompt
        stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_ids)
        return Sequence(
            request=request,
            instance=instance,
            tokens=tokens,
            num_prompt=len(prompt),
            num_tokens=len(prompt),
            max_total=len(tokens),
            stop_ids=stop_ids,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            is_greedy=not request.constrained and _is_greedy(sampling),
            generates=request.generates,
            reads_more=not request.generates or sampling.prompt_logprobs is not None,
            needs_history=_needs_history(sampling),
        )

    @property
    def sampling(self) -> SamplingParams:
        """Its sampling settings."""
        return self.request.sampling

    @property
    def num_generated(self) -> int:
        """Tokens generated and read."""
        return self.num_tokens - self.num_prompt

    @property
    def num_total(self) -> int:
        """Known tokens plus those in flight."""
        return self.num_tokens + self.num_sampling

    @property
    def num_remaining(self) -> int:
        """Tokens that still have to pass through the model before the next one can be sampled."""
        return self.num_tokens + self.num_sampling - self.num_computed

    @property
    def is_blocked(self) -> bool:
        """It must not be scheduled now: paused, complete once read, or in need of what is still in flight."""
        if self.held:
            return True
        if self.num_sampling and (not self.generates or self.needs_history or self.state is State.WAITING):
            return True
        if self.num_tokens + self.num_sampling >= self.max_total and self.generates:
            return True
        return self.lacks_mask

    @property
    def lacks_mask(self) -> bool:
        """It follows a grammar of which nobody has said yet what it allows next."""
        return self.request.constrained and (self.num_sampling > 0 or self.num_generated not in self.masks)

    @property
    def drafter(self) -> Drafter | None:
        """Who proposes its tokens. A draft's own proposals would come without masks."""
        if self.instance.drafter is not None and self.request.constrained:
            return Drafter.GRAMMAR
        return self.instance.drafter

    @property
    def may_draft(self) -> bool:
        """Tokens may be proposed for it."""
        return self.drafter is not None and self.draft_limit > 0 and self.generates

    @property
    def draft_limit(self) -> int:
        """Tokens that may be proposed for it at a time, as its instance was made and its request wants."""
        made, wanted = self.instance.num_draft_steps, self.request.num_draft_steps
        return made if wanted is None else min(made, wanted)

    @property
    def max_draft_steps(self) -> int:
        """Tokens that may be proposed for it now."""
        if not self.may_draft:
            return 0
        return min(self.draft_limit, self.max_total - self.num_tokens - 1)

    @property
    def awaits_first_token(self) -> bool:
        """Nothing was generated yet."""
        return self.num_tokens == self.num_prompt

    @property
    def has_begun(self) -> bool:
        """It is bound to the version of its instance."""
        return self.state is State.RUNNING or self.epoch > 0

    @property
    def max_cached(self) -> int:
        """Tokens that may come from the cache: whatever is read of the others must be computed."""
        if self.sampling.prompt_logprobs is not None:
            return 0
        if self.request.score is not None:
            return self.request.score.first_row
        return self.num_tokens - 1

    def allow(self, num_generated: int, masks: bytes, given: np.ndarray) -> None:
        """Take masks, one behind another, for the token after so many generated ones and after each proposal."""
        size = len(masks) // (1 + len(given))
        places = range(1 + len(given))
        self.masks = {num_generated + place: masks[place * size : (place + 1) * size] for place in places}
        self.given = given

    def ask(self, num_wanted: int) -> None:
        """A token came: what was said of its place is over, and so many proposals are wanted next."""
        self.masks.clear()
        self.given = self.given[:0]
        self.num_asked = num_wanted

    def rebase(self, instance: Instance) -> None:
        """Take a newer version of its instance, before anything was computed."""
        assert not self.has_begun
        self.instance = instance
        self.chain.clear()

    def extend_chain(self, block_size: int) -> None:
        """Bring the chain of block keys up to the known tokens."""
        if len(self.chain) < self.num_tokens // block_size:
            extend_chain(self.chain, self.instance.root, self.tokens[: self.num_tokens], block_size)

    def forget_progress(self) -> list[int]:
        """Back to waiting with nothing computed: the blocks to release."""
        blocks, self.blocks = self.blocks, []
        self.state, self.slot = State.WAITING, -1
        self.epoch += 1
        self.num_computed = self.num_draft_computed = self.num_published = 0
        if self.awaits_first_token:
            self.prompt_scores.clear()
            self.values.clear()
        return blocks


def _is_greedy(sampling: SamplingParams) -> bool:
    edits = sampling.logit_bias, sampling.min_tokens, sampling.presence_penalty, sampling.frequency_penalty
    return sampling.temperature < COLDEST and sampling.repetition_penalty == 1 and not any(edits)


def _needs_history(sampling: SamplingParams) -> bool:
    return bool(sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty)
