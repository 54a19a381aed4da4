"""Tells the control plane."""

from harmonia.client.recipe import ControlPlaneJobNotifier, ControlPlaneStageNotifier

__all__ = ["ControlPlaneJobNotifier", "ControlPlaneStageNotifier"]
