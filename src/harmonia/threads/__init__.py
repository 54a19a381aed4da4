"""Conversations with weights: immutable values in text or in tokens, without a tokenizer."""

from harmonia.threads.strings import StringThread, StringTurn
from harmonia.threads.tokens import TokenizedThread, TokenizedTurn

__all__ = ["StringThread", "StringTurn", "TokenizedThread", "TokenizedTurn"]
