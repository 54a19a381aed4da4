"""What the files of a model say, as `python -m harmonia.models.facts` tells whoever must not read them itself."""

from __future__ import annotations

from typing import Literal

import msgspec

from harmonia.protocol.fleet import WorkerFailure


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk."""

    path: str
    """Folder or file, with links followed."""
    kind: Literal["base", "adapter", "draft"]
    """`draft`: a whole model that proposes tokens to another; asked by its name, that one answers."""
    family: str | None
    """None: an adapter, which has its base model's."""
    num_parameters: int
    """Of an adapter or a draft its own."""
    max_seq_len: int | None
    """Tokens that it was made for; None: an adapter."""
    base: str | None = None
    """Of an adapter: where its base model is, with links followed; as its files name it where that is nowhere here.
    Of a draft: where the model or the adapter is for which it drafts."""
    num_draft_steps: int | None = None
    """Of a draft: tokens that it proposes at a time, as it was saved."""
    is_scalar: bool = False
    """It scores instead of speaking."""
    is_trainable: bool = True
    """False for quantised files."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the command prints: the facts, if they were asked for, or what is wrong."""

    facts: ModelFacts | None = None
    failure: WorkerFailure | None = None
