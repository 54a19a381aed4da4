"""What a recipe's config may ask for: models and data sets by key or path."""

from harmonia.client.parameters.dataset import Dataset
from harmonia.client.parameters.model import Model

__all__ = ["Dataset", "Model"]
