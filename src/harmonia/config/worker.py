"""Settings of a worker process: which model, which adapters, where it listens."""

from __future__ import annotations

import msgspec

from harmonia.config.engine import EngineConfig


class AdapterSource(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter to load at start."""

    key: str
    """Name under which requests address it."""
    path: str
    """Folder in PEFT's format."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One backbone, its adapters, and the socket that serves them."""

    model: str
    """Hugging Face folder or GGUF file."""
    key: str
    """Name under which requests address the bare backbone."""
    socket: str
    """Path of the Unix socket to listen on."""
    adapters: tuple[AdapterSource, ...] = ()
    """Adapters to load before reporting ready."""
    engine: EngineConfig = EngineConfig()
    """How to run it."""
    max_ttft_ms: int = 60_000
    """Milliseconds before a request without its first token is given up, queue time included."""
    max_grammar_bytes: int = 262_144
    """Largest JSON schema or grammar that a request may bring."""
