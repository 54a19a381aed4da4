"""`adaptive_info.json`: what a saved model says of itself that no other format has a place for. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from harmonia.errors import UnsupportedModelError
from harmonia.models.config import ModelConfig
from harmonia.protocol.instances import MAX_DRAFT_STEPS

FILE = "adaptive_info.json"


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter and its base must have in common."""

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int

    @staticmethod
    def of(config: ModelConfig) -> Geometry:
        """That of a model."""
        return Geometry(
            family=config.family,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )

    def allows(self, other: Geometry) -> bool:
        """Whether an adapter of the one may change the other.

        Vocabularies may be padded apart, and a GGUF file calls a Mistral a Llama.
        """
        families = {"llama" if family == "mistral" else family for family in (self.family, other.family)}
        sizes = (self.num_layers, self.hidden_size) == (other.num_layers, other.hidden_size)
        return sizes and len(families) == 1

    def __str__(self) -> str:
        return f"{self.family}, {self.num_layers} layers of {self.hidden_size}, vocabulary {self.vocab_size}"


class AdaptiveInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All fields but `kind` may be absent; unknown ones are ignored."""

    kind: Literal["adapter", "model"]
    base: str | None = None
    """Of an adapter: path or registry URI of the model whose weights it changes."""
    base_geometry: Geometry | None = None
    """Of an adapter: the shape of that model."""
    parent: str | None = None
    """What it was trained from: the base, or the adapter or model that training went on with."""
    scalar_head: bool = False
    """It scores instead of speaking."""
    draft_target: str | None = None
    """Of a draft: the model to which it proposes tokens, by path or by key. `models.drafts` tells how it is found."""
    num_draft_steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_DRAFT_STEPS)] | None = None
    """Of a draft: tokens that it proposes at a time, at most, unless somebody says otherwise."""
    defaults: dict[str, object] = {}
    """Settings for requests that give none, such as temperature."""


def write_info(folder: Path, info: AdaptiveInfo) -> None:
    """Write the file into a folder that is being saved."""
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2))


def read_info(folder: Path) -> AdaptiveInfo | None:
    """What a folder says of itself; None if it was not saved here. Errors: UnsupportedModelError for a broken file."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=AdaptiveInfo)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnsupportedModelError(f"{file} is broken: {error}", file=str(file)) from error
