"""Conversations as text."""

from harmonia.client.evaluation import stringify_thread

__all__ = ["stringify_thread"]
