"""A dataset as the platform describes it."""

from harmonia.client.data import AdaptiveDatasetKind

__all__ = ["AdaptiveDatasetKind"]
