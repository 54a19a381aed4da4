"""Models, datasets and graders as fields of a recipe's configuration."""

from harmony_client.parameters import dataset_kinds, model_kinds

from harmonia.client.data import SampleMetadata
from harmonia.client.parameters import Dataset, Model
from harmonia.client.recipe import RecipeContext
from harmonia.graders.parameter import Grader

__all__ = ["Dataset", "Grader", "Model", "RecipeContext", "SampleMetadata", "dataset_kinds", "model_kinds"]
