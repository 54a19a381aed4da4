"""Interactions that are not in the database yet, in files, so that a server that is killed loses none.

Each is appended as a frame before its answer is complete: one write into the system's cache, which no end of the
process undoes. Nothing waits for the disk, so what a machine that loses power keeps is up to its database and this file
alike. Frames say what was recorded and what was settled; what was recorded only is put into the line at the next start.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from harmonia.log import get_logger
from harmonia.server.services.interactions.interaction import Interaction

log = get_logger(__name__)

_HEADER = struct.Struct("<II")
"""Length and CRC-32 of what follows."""
_MAX_FILE_BYTES = 32 << 20
_SUFFIX = ".journal"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Interaction | list[uuid.UUID]).decode


@dataclass(slots=True)
class _File:
    path: Path
    descriptor: int
    size: int = 0
    open_ids: set[uuid.UUID] = field(default_factory=set)
    """Recorded in it and not settled."""


class Journal:
    """The files of one database, in a folder of this machine. A write takes some 10 us; one that fails is told."""

    def __init__(self, folder: Path, address: str) -> None:
        """address: of the database, without its password, since another's interactions do not belong into it."""
        self._folder = folder / hashlib.sha256(address.encode()).hexdigest()[:16]
        self._files: list[_File] = []
        self._of: dict[uuid.UUID, _File] = {}
        self._number = 0
        self.failures = 0

    def open(self) -> list[Interaction]:
        """What earlier servers recorded and did not settle, oldest first; it stays here until it is settled."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        left: dict[uuid.UUID, Interaction] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}"), key=_number_of):
            self._number = _number_of(path)
            file = _File(path, os.open(path, os.O_WRONLY | os.O_APPEND))
            self._files.append(file)
            for entry in _entries(path):
                self._replay(file, entry, left)
        self._begin()
        self._drop_settled()
        return list(left.values())

    def close(self) -> None:
        """Nothing is recorded any more. Files in which everything is settled go."""
        for file in self._files:
            os.close(file.descriptor)
            if not file.open_ids:
                file.path.unlink(missing_ok=True)
        self._files.clear()
        self._of.clear()

    def record(self, item: Interaction) -> None:
        """Keep an interaction until it is settled."""
        if not self._files:
            return
        try:
            if self._files[-1].size > _MAX_FILE_BYTES:
                self._begin()
            file = self._files[-1]
            _append(file, _encode(item))
        except (OSError, TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            self._tell(error)
            return
        file.open_ids.add(item.id)
        self._of[item.id] = file

    def settle(self, ids: Collection[uuid.UUID]) -> None:
        """These are in the database, or were refused by it."""
        for item in ids:
            file = self._of.pop(item, None)
            if file is not None:
                file.open_ids.discard(item)
        if not self._files:
            return
        file = self._files[-1]
        try:
            self._drop_settled()
            if self._of:
                _append(file, _encode(list(ids)))
            elif file.size:
                _cut(file, 0)
        except OSError as error:
            self._tell(error)

    # -------------------------------------------------------------------------------------------------- files

    def _replay(self, file: _File, entry: Interaction | list[uuid.UUID], left: dict[uuid.UUID, Interaction]) -> None:
        if isinstance(entry, Interaction):
            left[entry.id] = entry
            file.open_ids.add(entry.id)
            self._of[entry.id] = file
            return
        for item in entry:
            if left.pop(item, None) is not None:
                self._of.pop(item).open_ids.discard(item)

    def _begin(self) -> None:
        self._number += 1
        path = self._folder / f"{self._number}{_SUFFIX}"
        self._files.append(_File(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)))

    def _drop_settled(self) -> None:
        """Files in front that hold nothing that is open; of those before them later frames speak."""
        while len(self._files) > 1 and not self._files[0].open_ids:
            file = self._files.pop(0)
            os.close(file.descriptor)
            file.path.unlink(missing_ok=True)

    def _tell(self, error: Exception) -> None:
        self.failures += 1
        if self.failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
            log.error(
                "%s cannot be written to (%s): should this server be killed, interactions that are not in the database "
                "yet are lost (the %d. time)",
                self._folder,
                error,
                self.failures,
            )


def _append(file: _File, body: bytes) -> None:
    """All of a frame or nothing of it; OSError for nothing."""
    frame = _HEADER.pack(len(body), zlib.crc32(body)) + body
    written = os.write(file.descriptor, frame)
    if written < len(frame):
        _cut(file, file.size)
        raise OSError(f"only {written} of {len(frame)} bytes were taken; is the disk full?")
    file.size += len(frame)


def _cut(file: _File, size: int) -> None:
    os.ftruncate(file.descriptor, size)
    file.size = size


def _number_of(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0


def _entries(path: Path) -> Iterator[Interaction | list[uuid.UUID]]:
    """The frames of a file, up to the one that was being written when its server was killed."""
    data, at = path.read_bytes(), 0
    while at + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(body) < length or zlib.crc32(body) != checksum:
            break
        at += _HEADER.size + length
        try:
            yield _decode(body)
        except msgspec.MsgspecError as error:
            log.error("%s holds an interaction of another version, which is left out: %s", path, error)
    if at < len(data):
        log.warning("%s ends in the middle of a frame; %d bytes are left out", path, len(data) - at)
