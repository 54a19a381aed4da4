"""Tells the terminal."""

from harmonia.client.recipe import StdoutJobNotifier, StdoutStageNotifier

__all__ = ["StdoutJobNotifier", "StdoutStageNotifier"]
