"""What an optimizer needs to go on where it stopped, beside a saved model: tensors bit for bit, and numbers in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.models.tensor_file import tensor_spec, write_tensor_file

TENSORS = "optimizer.safetensors"
META = "optimizer.json"


def save_state(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write tensors of any types and plain data (`step`, settings) into a folder being saved. Errors: OSError."""
    write_tensor_file(folder / TENSORS, {name: tensor_spec(tensor) for name, tensor in tensors.items()})
    (folder / META).write_bytes(msgspec.json.format(msgspec.json.encode(dict(meta)), indent=2))


def state_bytes(tensors: Mapping[str, Tensor]) -> int:
    """About what `save_state` writes."""
    return sum(tensor.nbytes for tensor in tensors.values())


def has_state(folder: Path) -> bool:
    """Whether a folder was saved with its optimizer's state (`inference_only=False`)."""
    return (folder / TENSORS).is_file() and (folder / META).is_file()


def load_meta(folder: Path) -> dict[str, object]:
    """The plain data alone. Errors: InvalidRequestError for a folder without state, or a broken one."""
    _require(folder)
    try:
        return msgspec.json.decode((folder / META).read_bytes(), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{folder / META} is broken: {error}") from error


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """(tensors, plain data) as they were saved. Errors: InvalidRequestError for a folder without state, or broken."""
    meta = load_meta(folder)
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118  (a reader)
    except SafetensorError as error:
        raise InvalidRequestError(f"{folder / TENSORS} is broken: {error}") from error


def _require(folder: Path) -> None:
    if not has_state(folder):
        raise InvalidRequestError(
            f"{folder} holds no optimizer state; save with inference_only=False to go on training from it"
        )
