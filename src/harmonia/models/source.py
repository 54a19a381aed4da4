"""Opening a model: configuration and headers, cheap enough to do in any process, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from harmonia.errors import UnsupportedModelError
from harmonia.models.adaptive_info import read_info
from harmonia.models.checkpoint import SafetensorsFolder, open_safetensors
from harmonia.models.config import ModelConfig
from harmonia.models.cutting import check_layers, cut_config, cut_files
from harmonia.models.fields import read_json
from harmonia.models.gguf import GgufFile, open_gguf
from harmonia.models.gguf_config import gguf_model_config
from harmonia.models.hf_config import read_config


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on disk whose header was read and whose configuration is supported."""

    path: Path
    """The folder, or the GGUF file."""
    config: ModelConfig
    files: SafetensorsFolder | GgufFile
    """Where its tensors are."""
    kept_layers: tuple[int, ...] | None = None
    """If it was cut: which layers of the stored model it is made of; `files` names them as this model's own."""

    @property
    def gguf_path(self) -> Path | None:
        """The GGUF file, if it is one."""
        return self.path if isinstance(self.files, GgufFile) else None

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder with tokenizer files; None when the GGUF file holds the tokenizer."""
        return None if isinstance(self.files, GgufFile) else self.path

    def limited(self, max_seq_len: int) -> ModelSource:
        """The same model for sequences of at most this length, with position tables to match."""
        length = min(max_seq_len, self.config.max_seq_len)
        return replace(self, config=msgspec.structs.replace(self.config, max_seq_len=length))

    def cut(self, layers: Sequence[int]) -> ModelSource:
        """A smaller model of these layers, in this order, between the same embedding, last norm and head.

        Only their tensors will be read. Errors: InvalidRequestError unless they rise and the model has them.
        """
        check_layers(layers, self.config.num_layers)
        config, files = cut_config(self.config, layers), cut_files(self.files, layers)
        return replace(self, config=config, files=files, kept_layers=tuple(layers))


def open_model(path: str | Path) -> ModelSource:
    """Open a Hugging Face folder, a GGUF file, or a folder with exactly one GGUF file.

    Reads configuration and tensor headers only.
    Errors: UnsupportedModelError naming what is missing, broken or unknown.
    """
    path = Path(path)
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such file or folder", file=str(path))
    if path.is_file():
        return _open_gguf(path)
    if (path / "config.json").exists():
        config = read_config(path)
        return ModelSource(path, config, open_safetensors(path))
    base = adapter_base(path)
    if base is not None:
        message = f"{path}: an adapter, not a whole model; open its base {base!r} and load the adapter onto it"
        raise UnsupportedModelError(message, file=str(path), base=base)
    candidates = sorted(path.glob("*.gguf"))
    if len(candidates) == 1:
        return _open_gguf(candidates[0])
    found = f"{len(candidates)} GGUF files; name one" if candidates else "neither config.json nor a GGUF file"
    raise UnsupportedModelError(f"{path}: not a model folder: {found}", file=str(path))


def adapter_base(path: str | Path) -> str | None:
    """The model whose weights an adapter's folder changes: a path, a registry URI or a name. None if it is no adapter.

    Errors: UnsupportedModelError for an adapter that does not say.
    """
    path = Path(path)
    file = path / "adapter_config.json"
    if not file.is_file():
        return None
    info = read_info(path)
    if info is not None and info.base:
        return info.base
    return read_json(file).text("base_model_name_or_path")


def _open_gguf(path: Path) -> ModelSource:
    if path.suffix in (".json", ".safetensors"):
        raise UnsupportedModelError(f"{path}: give the model's folder, not one of its files", file=str(path))
    file = open_gguf(path)
    return ModelSource(path, gguf_model_config(file), file)
