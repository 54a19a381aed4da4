"""The context of a recipe, and how to reach its worker."""

from harmonia.client.connect import get_client
from harmonia.client.recipe import (
    CheckpointArtifactMetadata,
    ControlPlaneJobNotifier,
    RecipeConfig,
    RecipeConfigCli,
    RecipeContext,
    RecipeContextManager,
    StdoutJobNotifier,
)

__all__ = [
    "CheckpointArtifactMetadata",
    "ControlPlaneJobNotifier",
    "RecipeConfig",
    "RecipeConfigCli",
    "RecipeContext",
    "RecipeContextManager",
    "StdoutJobNotifier",
    "get_client",
]
