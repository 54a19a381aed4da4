"""Settings of a worker process: what it serves from the start, where it listens, where models are kept."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from harmonia.config.engine import EngineConfig


class AdapterSource(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter to load at start."""

    key: str
    """Name under which requests address it."""
    path: str
    """Folder in PEFT's format."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker serves, and the sockets on which clients reach it."""

    model: str | None = None
    """What to serve from the start: a Hugging Face folder, a GGUF file, an adapter's folder in PEFT's format, which
    stands for its base model with it, or the folder of a saved draft, which stands for its target with this draft; None
    starts bare, and clients spawn what they need."""
    key: str = ""
    """Name under which requests address that model."""
    socket: str = ""
    """Path of the Unix socket to listen on; empty: none."""
    host: str = "127.0.0.1"
    """Address to bind for WebSocket clients. There are no passwords: whoever reaches it may use the worker."""
    port: int | None = None
    """Port for WebSocket clients; None: none, 0: a free one."""
    registry: str = ""
    """Folder of saved models; empty: `$HARMONIA_REGISTRY`, else `harmonia/registry` in `$XDG_DATA_HOME`, which is
    `~/.local/share` unless set."""
    adapters: tuple[AdapterSource, ...] = ()
    """Adapters to load before reporting ready."""
    engine: EngineConfig = EngineConfig()
    """How to run it."""
    max_ttft_ms: int = 60_000
    """Milliseconds before a request without its first token is given up, queue time included."""
    max_grammar_bytes: int = 262_144
    """Largest JSON schema or grammar that a request may bring."""
    max_silence_s: float = 30.0
    """Seconds for which a process of the worker may show no sign of life before it is killed. Loading, long prompts and
    training steps are such signs. A fleet sets it to its own."""
    place: str = ""
    """The device that it gets when a fleet starts it: a GPU as `CUDA_VISIBLE_DEVICES` names it, `cpu`, or some cores,
    such as `cpu:0-3,8`. Empty: all that the fleet has."""

    def registry_folder(self) -> Path:
        """Where saved models are."""
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        chosen = self.registry or os.environ.get("HARMONIA_REGISTRY") or f"{data}/harmonia/registry"
        return Path(chosen).expanduser().absolute()


CPU = "cpu"
"""The place of a worker that gets no GPU."""


def cores_of(place: str) -> frozenset[int] | None:
    """The cores that a place `cpu:...` names; None for every other place. ValueError for what is no list of cores."""
    kind, found, listed = place.partition(":")
    if kind != CPU or not found:
        return None
    cores: set[int] = set()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    if not cores:
        raise ValueError(f"{place!r} names no core")
    return frozenset(cores)
