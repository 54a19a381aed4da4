"""Settings of the engine: precision, cache, scheduler, adapters."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The key/value cache of one backbone."""

    kv_cache_len: int | None = None
    """Tokens that the cache holds. A number is a minimum that loading enforces; None fits the device."""
    default_kv_cache_len: int = 131_072
    """Ceiling of the automatic size, in tokens; lowered to what fits."""
    block_size: int = 16
    """Tokens per block."""
    prefix_caching: bool = True
    """Reuse blocks of equal prefixes, of earlier chat turns above all."""
    max_sessions: int = 10_000
    """Sessions whose blocks are kept in preference to others; the least recently used is forgotten first."""


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine step may hold."""

    max_batch_tokens: int | None = None
    """Tokens per step: one for each running sequence, the rest for chunks of prompts. None: 8192 on a GPU, and 512 on a
    CPU, where a longer chunk would stall the sequences that generate."""
    max_prefill_tokens: int | None = None
    """Prompt tokens per step while other sequences generate, so that a long prompt does not stall them. None: all that
    the step holds on a GPU, and 256 on a CPU."""
    max_running: int = 256
    """Sequences that may generate at once."""
    max_queue: int = 4096
    """Requests that may wait; one more is refused with a time to retry after."""
    reserve_blocks: int = 4
    """Free blocks that admitting a new sequence must leave, so that running ones seldom need preemption."""
    training_share: float = 0.17
    """Time that training may take beside serving, as a share of what serving takes: with 0.17 the mean time between
    tokens rises 1.2 times at most, cooler caches included. While nothing is served, training has all of it."""
    max_bypass_s: float = 1.0
    """How long later requests may overtake one at the head that cannot start yet."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One backbone on one device."""

    device: Device = "auto"
    """`auto` takes the GPU when there is one."""
    precision: Precision = "auto"
    """Weights and compute; `auto` is bfloat16 on a GPU, or fp8 if the model's files are, and float32 on a CPU. int8:
    weights only, per channel. fp8: the layers' weights per channel, or as an fp8 checkpoint scales them, and their
    inputs per token; adapters, norms, embeddings and the head are not rounded."""
    invariant: bool = False
    """Compute every token the same way whatever else is in its batch: sums run in one fixed order. Equal requests then
    have equal results bit for bit, and sampled, scored and trained log-probabilities are the same numbers."""
    graphs: bool = True
    """On a GPU, replay captured graphs in steps that only decode: hundreds of kernels for one launch."""
    max_seq_len: int | None = None
    """Longest prompt plus answer, in tokens; None takes the model's own limit."""
    draft: str | None = None
    """Folder or file of a smaller model that proposes tokens to the served model, or `ngram`: see `SpawnSpec.draft`."""
    num_draft_steps: int | None = None
    """Tokens that are proposed at a time, 1 to 8; None: what the draft was saved with, else up to 4."""
    max_adapters: int = 4
    """Named adapters that may be loaded at once."""
    max_adapter_rank: int = 64
    """Largest rank of one adapter."""
    adapter_rank_budget: int = 128
    """Rank rows that all loaded adapters share; reserved when the model loads."""
    num_threads: int | None = None
    """CPU threads for compute; None takes every core that this process may use."""
    memory_fraction: float = 0.9
    """Share of the device's free memory that the plan may use."""
    cache: CacheConfig = CacheConfig()
    """Key/value cache."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Batching and queueing."""
