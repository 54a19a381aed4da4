"""Recipes: programs that train and evaluate, run with a context (`@recipe_main`, `InputConfig`, `RecipeContext`)."""

from harmonia.client.recipe.config import InputConfig, RecipeConfig, RecipeConfigCli, RunnerArgs
from harmonia.client.recipe.context import CheckpointArtifactMetadata, RecipeContext, RecipeContextManager
from harmonia.client.recipe.control_plane import ControlPlane
from harmonia.client.recipe.dependencies import declared, install, use_dependencies
from harmonia.client.recipe.entry import recipe_main
from harmonia.client.recipe.failures import recipe_traceback
from harmonia.client.recipe.inputs import check_config, validate_input
from harmonia.client.recipe.journal import JournalJobNotifier
from harmonia.client.recipe.journal_state import JobState, read_journal, read_metrics, read_restore_data
from harmonia.client.recipe.loading import Recipe, RecipeFunction, load_recipe
from harmonia.client.recipe.notifiers import JobNotifier, PendingArtifact, StageNotifier
from harmonia.client.recipe.platform import ControlPlaneJobNotifier, ControlPlaneStageNotifier
from harmonia.client.recipe.progress import SimpleProgressNotifier
from harmonia.client.recipe.runner import run_recipe
from harmonia.client.recipe.stdout import StdoutJobNotifier, StdoutStageNotifier

__all__ = [
    "CheckpointArtifactMetadata",
    "ControlPlane",
    "ControlPlaneJobNotifier",
    "ControlPlaneStageNotifier",
    "InputConfig",
    "JobNotifier",
    "JobState",
    "JournalJobNotifier",
    "PendingArtifact",
    "Recipe",
    "RecipeConfig",
    "RecipeConfigCli",
    "RecipeContext",
    "RecipeContextManager",
    "RecipeFunction",
    "RunnerArgs",
    "SimpleProgressNotifier",
    "StageNotifier",
    "StdoutJobNotifier",
    "StdoutStageNotifier",
    "check_config",
    "declared",
    "install",
    "load_recipe",
    "read_journal",
    "read_metrics",
    "read_restore_data",
    "recipe_main",
    "recipe_traceback",
    "run_recipe",
    "use_dependencies",
    "validate_input",
]
