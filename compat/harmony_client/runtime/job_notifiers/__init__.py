"""Where a job tells how far it is."""

from harmonia.client.recipe import (
    ControlPlaneJobNotifier,
    ControlPlaneStageNotifier,
    JobNotifier,
    PendingArtifact,
    StageNotifier,
    StdoutJobNotifier,
    StdoutStageNotifier,
)

__all__ = [
    "ControlPlaneJobNotifier",
    "ControlPlaneStageNotifier",
    "JobNotifier",
    "PendingArtifact",
    "StageNotifier",
    "StdoutJobNotifier",
    "StdoutStageNotifier",
]
