"""What an optimizer needs to go on where it stopped, beside a saved model: tensors bit for bit, and numbers in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.models.tensor_file import TYPE_NAMES, tensor_spec, write_tensor_file

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


def restore_state(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Copy what was saved into tensors of the same names, shapes and types: the plain data.

    One tensor is read at a time. Errors: as `load_state`, and InvalidRequestError naming what differs; then nothing has
    been written.
    """
    meta = load_meta(folder)
    try:
        with safe_open(folder / TENSORS, framework="pt") as file, torch.no_grad():
            _check(folder, {name: _described(file.get_slice(name)) for name in file.keys()}, tensors)  # noqa: SIM118
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise InvalidRequestError(f"{folder / TENSORS} is broken: {error}") from error
    return meta


def _described(stored: object) -> str:
    # The class of slices is not public.
    return f"{stored.get_dtype()} {list(stored.get_shape())}"  # type: ignore[attr-defined]


def _check(folder: Path, found: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: f"{TYPE_NAMES[tensor.dtype]} {list(tensor.shape)}" for name, tensor in tensors.items()}
    if found == wanted:
        return
    name = next(name for name in [*wanted, *found] if found.get(name) != wanted.get(name))
    raise InvalidRequestError(
        f"{folder}: its optimizer state is of another model: {name!r} is {found.get(name, 'missing')} there and "
        f"{wanted.get(name, 'missing')} here; load it into the model that it was saved from, spawned the same way"
    )


def _require(folder: Path) -> None:
    if not has_state(folder):
        raise InvalidRequestError(
            f"{folder} holds no optimizer state; save with inference_only=False to go on training from it"
        )
