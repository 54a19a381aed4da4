"""`python -m harmonia.models.facts MODEL REGISTRY`: what a model's files say, as one line of JSON. Imports no torch.

For the control half, which reads no model files itself and can so never disagree with the engine about them. Without
REGISTRY only the configuration is read, of a folder whose weights may be missing yet.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import msgspec

from harmonia.errors import HarmoniaError, UnknownModelError
from harmonia.models.adaptive_info import read_info
from harmonia.models.checkpoint import SafetensorsFolder, open_safetensors
from harmonia.models.drafts import draft_target
from harmonia.models.gguf import GgufFile
from harmonia.models.hf_config import read_config
from harmonia.models.registry import ModelRegistry
from harmonia.models.source import adapter_base, open_model
from harmonia.protocol.facts import Answer, ModelFacts
from harmonia.protocol.fleet import WorkerFailure

_SCALES = ("_scale_inv", "_scale", ".scales")
"""Ends of the names of what scales other numbers and is no parameter."""


def read_facts(uri: str, registry: ModelRegistry) -> ModelFacts:
    """The facts of a path or `model_registry://key`.

    Errors: UnknownModelError, UnsupportedModelError; InvalidRequestError for a draft of a draft.
    """
    path = registry.resolve(uri).resolve()
    base = adapter_base(path) if path.is_dir() else None
    info = read_info(path) if path.is_dir() else None
    is_scalar = info is not None and info.scalar_head
    if base is not None:
        return ModelFacts(
            path=str(path),
            kind="adapter",
            family=None,
            num_parameters=_count(open_safetensors(path)),
            max_seq_len=None,
            base=_place(base, registry),
            is_scalar=is_scalar,
        )
    source, target = open_model(path), draft_target(path, registry)
    return ModelFacts(
        path=str(path),
        kind="base" if target is None else "draft",
        family=source.config.family,
        num_parameters=_count(source.files),
        max_seq_len=source.config.max_seq_len,
        base=None if target is None else str(target.resolve()),
        num_draft_steps=None if info is None or target is None else info.num_draft_steps,
        is_scalar=is_scalar,
        is_trainable=source.gguf_path is None,
    )


def _count(files: SafetensorsFolder | GgufFile) -> int:
    tensors = files.tensors if isinstance(files, GgufFile) else files.entries
    return sum(math.prod(tensor.shape) for name, tensor in tensors.items() if not name.endswith(_SCALES))


def _place(base: str, registry: ModelRegistry) -> str:
    try:
        return str(registry.resolve(base).resolve())
    except UnknownModelError:
        return base  # a name at Hugging Face, say


def check_config(folder: Path) -> None:
    """UnsupportedModelError for a model whose configuration says already that it cannot be run."""
    if (folder / "config.json").is_file() and adapter_base(folder) is None:
        read_config(folder)


def main(model: str, registry: str | None = None) -> None:
    """Print an `Answer`."""
    try:
        if registry is None:
            check_config(Path(model))
        answer = Answer(facts=None if registry is None else read_facts(model, ModelRegistry(Path(registry))))
    except HarmoniaError as error:
        answer = Answer(failure=WorkerFailure(code=error.code, message=error.message, details=error.details))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
