"""`python -m harmonia.models.removal FOLDER PREFIX`: remove the saved models whose keys begin so."""

from __future__ import annotations

import sys

from harmonia.models.atomic import remove_abandoned
from harmonia.models.registry import ModelRegistry


def main(folder: str, prefix: str) -> None:
    """Remove every model of a registry whose key begins with `prefix`, and what interrupted saves left."""
    registry = ModelRegistry(folder)
    for key in [key for key in registry.keys() if key.startswith(prefix)]:  # noqa: SIM118 - it is no dictionary
        registry.remove(key)
    remove_abandoned(registry.folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
