"""The container format GGUF: metadata and where each tensor stands. No tensor is read here, no torch imported.

The gguf library's own reader builds several numpy arrays per metadata string; this one opens a file of 100,000 strings
thirty times faster, which matters since two processes open the file at start. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from harmonia.errors import UnsupportedModelError
from harmonia.models.fields import Fields

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in torch; the file keeps the reverse."""
    kind: GGMLQuantizationType
    start: int
    """First byte in the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one run of the last dimension."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def num_rows(self) -> int:
        """Runs of the last dimension."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    metadata: Fields
    tensors: dict[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Parse the header. Errors: UnsupportedModelError for a wrong magic or version, or a truncated file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            message = f"{path}: neither a model folder nor a GGUF file (it does not begin with {_MAGIC.decode()})"
            raise UnsupportedModelError(message, file=str(path))
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                return _parse(path, view, size)
            except (struct.error, IndexError, OverflowError) as error:
                message = f"{path}: truncated: the header ends beyond the file's {size} bytes"
                raise UnsupportedModelError(message, file=str(path)) from error


def _parse(path: Path, view: mmap.mmap, size: int) -> GgufFile:
    cursor = _Cursor(view, 4, path)
    version = cursor.number("I")
    if version not in _VERSIONS:
        message = f"{path}: GGUF version {version} is not supported. Supported: 2, 3 (little-endian)."
        raise UnsupportedModelError(message, file=str(path))
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, object] = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    fields = Fields(metadata, str(path))
    headers = [cursor.tensor_header() for _ in range(num_tensors)]
    alignment = fields.integer("general.alignment", 32)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in headers:
        tensors[name] = tensor = GgufTensor(name, shape, kind, data_start + offset)
        _check_extent(path, tensor, size)
    return GgufFile(path, fields, tensors)


def _check_extent(path: Path, tensor: GgufTensor, size: int) -> None:
    block = GGML_QUANT_SIZES[tensor.kind][0]
    if not tensor.shape or tensor.shape[-1] % block:
        message = f"{path}: tensor {tensor.name!r} of shape {list(tensor.shape)} does not divide into blocks of {block}"
        raise UnsupportedModelError(message, file=str(path), tensor=tensor.name)
    end = tensor.start + tensor.num_rows * tensor.row_bytes
    if end > size:
        message = f"{path}: truncated: tensor {tensor.name!r} ends at byte {end}, the file has {size}"
        raise UnsupportedModelError(message, file=str(path), tensor=tensor.name)


class _Cursor:
    """Reads values one after another."""

    def __init__(self, view: mmap.mmap, position: int, path: Path) -> None:
        self.view = view
        self.position = position
        self.path = path

    def number(self, code: str) -> int:
        """One little-endian scalar."""
        (value,) = struct.unpack_from(f"<{code}", self.view, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        """A length and so many bytes of UTF-8."""
        length = self.number("Q")
        end = self.position + length
        if end > len(self.view):
            raise IndexError(end)
        text = self.view[self.position : end]
        self.position = end
        # Some vocabularies hold tokens that are not valid UTF-8; they must survive as their bytes.
        return text.decode("utf-8", errors="surrogateescape")

    def value(self, kind: int) -> object:
        """A metadata value of this type."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.number("I"), self.number("Q")
            return self._array(item_kind, count)
        return self.number(self._code(kind))

    def _array(self, kind: int, count: int) -> list[object]:
        if count > len(self.view):
            raise IndexError(count)
        if kind in (_STRING, _ARRAY):
            return [self.value(kind) for _ in range(count)]
        layout = f"<{count}{self._code(kind)}"
        values = struct.unpack_from(layout, self.view, self.position)
        self.position += struct.calcsize(layout)
        return list(values)

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            message = f"{self.path}: metadata of unknown type {kind} at byte {self.position}; the file is damaged"
            raise UnsupportedModelError(message, file=str(self.path))
        return _SCALARS[kind]

    def tensor_header(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        """(name, shape, type, offset in the data)."""
        name = self.string()
        num_dimensions = self.number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            message = f"{self.path}: tensor {name!r} claims {num_dimensions} dimensions; the file is damaged"
            raise UnsupportedModelError(message, file=str(self.path), tensor=name)
        shape = tuple(self.number("Q") for _ in range(num_dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        try:
            return name, shape, GGMLQuantizationType(kind), offset
        except ValueError as error:
            message = f"{self.path}: tensor {name!r} is of unknown type {kind}"
            raise UnsupportedModelError(message, file=str(self.path), tensor=name) from error
