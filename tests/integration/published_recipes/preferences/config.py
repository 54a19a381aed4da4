"""The input of the recipe beside it."""

from adaptive_harmony.parameters import Dataset, Model, dataset_kinds, model_kinds
from adaptive_harmony.runtime import InputConfig


class PreferenceConfig(InputConfig):
    """A model, and pairs of answers of which one is better."""

    policy: Model[model_kinds.Trainable]
    pairs: Dataset[dataset_kinds.Preference]
    kl_beta: float = 0.1
