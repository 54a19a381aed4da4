"""Kinds of models, as in `Model[Trainable]`."""

from __future__ import annotations


class ModelKind:
    """What a recipe does with a model."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Inferable(ModelKind):
    """It answers."""

    def __init__(self) -> None:
        super().__init__("Inferable")


class Trainable(ModelKind):
    """It is trained."""

    def __init__(self) -> None:
        super().__init__("Trainable")
