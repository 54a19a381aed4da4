"""Removes what a model thought aloud."""

from harmonia.client.structured import remove_reasoning

__all__ = ["remove_reasoning"]
