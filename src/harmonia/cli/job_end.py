"""What can be done when a job has ended, as commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from harmonia.cli.jobs import short_id
from harmonia.cli.recipe_job import Order
from harmonia.client.recipe import JobState
from harmonia.errors import HarmoniaError
from harmonia.models.adaptive_info import read_info
from harmonia.models.registry import ModelRegistry
from harmonia.protocol.instances import SCHEME


def next_commands(order: Order, state: JobState) -> Iterator[tuple[str, str]]:
    """A word and the command for it: to continue a job that has a checkpoint, to serve the models of one that is over.

    How a model is served depends on its files, which are at hand if the worker was started here.
    """
    is_local = order.address is None
    if state.state in ("CANCELED", "FAILED") and any(checkpoint.file for checkpoint in state.checkpoints):
        options = [] if is_local else ["--worker", str(order.address)]
        yield "continue:", _command("run", *options, *_registry(order), "--resume", short_id(order.folder))
    if state.state == "COMPLETED" and is_local:
        for artifact in state.artifacts:
            command = _serve(order, artifact.name) if artifact.kind == "model" else None
            if command is not None:
                yield "serve it:", command


def _serve(order: Order, key: str) -> str | None:
    """The command that serves a saved model; None if it cannot be told, or it only scores."""
    registry = ModelRegistry(order.worker.registry_folder())
    try:
        folder = registry.resolve(SCHEME + key)
        info = read_info(folder)
        base = None if info is None or info.base is None else registry.resolve(info.base)
    except HarmoniaError:
        return None
    name = key.rpartition("/")[2]
    if info is None or info.scalar_head:
        return None
    if info.kind == "model":
        return _command("serve", SCHEME + key, *_registry(order))
    if base is None:
        return None
    return _command("serve", str(base), "--adapter", f"{name}={SCHEME}{key}", *_registry(order))


def _registry(order: Order) -> list[str]:
    return ["--registry", order.worker.registry] if order.worker.registry else []


def _command(*words: str) -> str:
    return shlex.join(["harmonia", *words])
