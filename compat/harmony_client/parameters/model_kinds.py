"""What a model is for: `Model[Trainable]`."""

from harmonia.client.parameters.model_kinds import Inferable, ModelKind, Trainable

__all__ = ["Inferable", "ModelKind", "Trainable"]
