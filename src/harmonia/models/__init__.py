"""Decoders of each family, and the reading of their files.

`load_decoder` is found on first use: a process that only opens models and tokenizes never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harmonia.models.config import ModelConfig
from harmonia.models.source import ModelSource, open_model

if TYPE_CHECKING:
    from harmonia.models.weights import load_decoder

__all__ = ["ModelConfig", "ModelSource", "load_decoder", "open_model"]


def __getattr__(name: str) -> object:
    if name == "load_decoder":
        # Imports torch, which costs the I/O process seconds that it has no use for.
        from harmonia.models.weights import load_decoder

        return load_decoder
    raise AttributeError(name)
