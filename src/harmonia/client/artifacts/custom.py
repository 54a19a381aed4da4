"""Any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harmonia.client.artifacts.base import ArtifactContext, ArtifactError, BaseArtifact, new_file
from harmonia.client.identifiers import uuid_v7


class CustomArtifact(BaseArtifact):
    """A file of whatever content.

    file: its name, by default the artifact's; an absolute path is used where it is. Further arguments are kept as
    metadata.
    """

    def __init__(self, name: str, ctx: ArtifactContext, file: str | None = None, **metadata: Any) -> None:
        id = uuid_v7()
        if file is not None and Path(file).is_absolute():
            path = Path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path = new_file(ctx, id, name.replace("/", "_") if file is None else file)
        super().__init__(ctx, id, name, "custom", str(path), **metadata)

    @property
    def file_path(self) -> str:
        """Where the content is."""
        return self._file_path or ""

    def write(self, content: str | bytes) -> None:
        """Replace the content."""
        self._open_file().write_bytes(_bytes(content))

    def append(self, content: str | bytes) -> None:
        """Add to the content."""
        with self._open_file().open("ab") as file:
            file.write(_bytes(content))

    def copy_from(self, source_path: str | Path) -> None:
        """Replace the content by that of a file. ArtifactError if it cannot be read."""
        try:
            content = Path(source_path).read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot copy {source_path} into '{self.name}': {error.strerror}") from error
        self.write(content)

    def read(self) -> bytes:
        """The content."""
        return Path(self.file_path).read_bytes()


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
