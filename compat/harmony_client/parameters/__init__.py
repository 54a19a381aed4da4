"""Models, datasets and graders as fields of a recipe's configuration."""

from harmonia.client.data import SampleMetadata
from harmonia.client.parameters import Dataset, Model
from harmonia.graders.parameter import Grader
from harmony_client.parameters import dataset_kinds, model_kinds

__all__ = ["Dataset", "Grader", "Model", "SampleMetadata", "dataset_kinds", "model_kinds"]
