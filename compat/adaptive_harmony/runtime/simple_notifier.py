"""The progress of a stage that is done in one piece."""

from harmonia.client.recipe import SimpleProgressNotifier

__all__ = ["SimpleProgressNotifier"]
