"""Models by key: a folder in which each entry is one saved model. Imports no torch.

An entry's name is its key with `/` spelled `%2F` and `%` spelled `%25`, all side by side in one folder. So a model `a`
and a model `a/b` never lie inside each other, and any folder, link or GGUF file that is put there by hand is a model.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from harmonia.errors import InvalidRequestError, UnknownModelError
from harmonia.models.atomic import MAX_NAME_BYTES, discard, is_temporary, set_aside, surviving
from harmonia.protocol.instances import SCHEME

_SHOWN_KEYS = 5
_CHECKPOINTS = "checkpoints/"
"""How trainers begin the keys of what only they look for."""


class ModelRegistry:
    """Saved models of one folder, which need not exist before the first save."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def resolve(self, uri: str) -> Path:
        """Where the model is that `model_registry://key` or a plain path names.

        Errors: UnknownModelError naming the keys that come nearest; InvalidRequestError for a key that cannot be one.
        """
        if not uri.startswith(SCHEME):
            path = Path(uri).expanduser()
            if not uri or not path.exists():
                raise UnknownModelError(
                    f"{uri or repr(uri)}: no such file or folder; models of the registry are named {SCHEME}key",
                    field="path",
                )
            return path
        key = uri.removeprefix(SCHEME)
        path = surviving(self.path_for(key))
        if not path.exists():
            raise UnknownModelError(
                f"no model {key!r} in the registry {self.folder}; {self._nearest(key)}", field="path"
            )
        return path

    def path_for(self, key: str) -> Path:
        """Where a model of this key stands or would stand. Errors: InvalidRequestError for a key that cannot be one."""
        _check(key)
        name = key.replace("%", "%25").replace("/", "%2F")
        if len(name.encode()) > MAX_NAME_BYTES:
            message = (
                f"model key {key!r} is too long: {len(name.encode())} bytes as a file name, at most {MAX_NAME_BYTES}"
            )
            raise InvalidRequestError(message, field="model_name")
        return self.folder / name

    def keys(self) -> list[str]:
        """Every key that `resolve` finds, sorted."""
        if not self.folder.is_dir():
            return []
        names = {path.name for path in self.folder.iterdir() if not is_temporary(path)} | {*set_aside(self.folder)}
        return sorted(_key(name) for name in names if not name.startswith("."))

    def remove(self, key: str) -> None:
        """Remove a model; whoever reads it meanwhile may fail. Nothing happens if there is none."""
        discard(self.path_for(key))

    def _nearest(self, key: str) -> str:
        keys = [name for name in self.keys() if key.startswith(_CHECKPOINTS) or not name.startswith(_CHECKPOINTS)]
        if not keys:
            return "it is empty"
        near = difflib.get_close_matches(key, keys, _SHOWN_KEYS, cutoff=0.5)
        shown = ", ".join(repr(name) for name in near or keys[:_SHOWN_KEYS])
        return f"nearest are {shown}" if near else f"there is {shown}" + (", ..." if len(keys) > _SHOWN_KEYS else "")


def _key(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


def _check(key: str) -> None:
    segments = key.split("/")
    problem = None
    if not key:
        problem = "is empty"
    elif key.startswith("/"):
        problem = "begins with a slash"
    elif "" in segments:
        problem = "has an empty part"
    elif any(segment.startswith(".") for segment in segments):
        problem = "has a part that begins with a dot"
    elif not key.isprintable() or "\\" in key:
        problem = "holds characters that cannot be part of a file name"
    if problem:
        message = f"model key {key!r} {problem}; use names joined by single slashes, such as 'runs/one/checkpoint-20'"
        raise InvalidRequestError(message, field="model_name")
