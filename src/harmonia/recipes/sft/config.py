"""What supervised fine-tuning can be told."""

from typing import Annotated

from pydantic import Field

from harmonia.client.parameters import Dataset, Model, dataset_kinds, model_kinds
from harmonia.client.recipe import InputConfig
from harmonia.recipes.naming import ModelKey


class SftConfig(InputConfig):
    """A model, a data set of prompts with completions, and how to learn from it."""

    model_to_train: Annotated[
        Model[model_kinds.Trainable],
        Field(title="Model to train", description="Key of a model in the registry, or a folder or GGUF file"),
    ]
    output_model_key: Annotated[
        ModelKey,
        Field(title="Output model key", description="The trained model is saved in the registry under this key"),
    ]
    dataset: Annotated[
        Dataset[dataset_kinds.Completion],
        Field(title="Dataset", description="Prompts with completions: a key, or a JSONL file"),
    ]
    run_validation: Annotated[
        bool, Field(title="Run validation", description="Score the loss on samples that are not trained on")
    ] = False
    validation_dataset: Annotated[
        Dataset[dataset_kinds.Completion] | None,
        Field(title="Validation dataset", description="Validate on this one, whether the switch is on or not"),
    ] = None
    validation_share: Annotated[
        float,
        Field(gt=0, lt=1, title="Validation share", description="Without a validation dataset, hold out this share"),
    ] = 0.1
    adapter: Annotated[
        bool,
        Field(title="Train an adapter", description="Low-rank (LoRA), beside frozen weights; off trains all weights"),
    ] = True
    tp: Annotated[int, Field(ge=1, title="Trained model TP", description="GPUs over which the model is split")] = 1
    max_sequence_length: Annotated[
        int,
        Field(
            ge=1,
            title="Trained model max sequence length",
            description="Tokens of a micro-batch and of the longest sample; lower it if memory runs out",
        ),
    ] = 10_000
    learning_rate: Annotated[
        float,
        Field(
            gt=0,
            title="Learning rate",
            description="Peak: reached after a tenth of the training. Adapters usually want 1e-4 to 1e-3",
        ),
    ] = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0, title="Max grad norm", description="Clip gradients to this norm")] = 1.0
    samples_per_batch: Annotated[
        int, Field(ge=1, title="Samples per batch", description="Samples of one step of the optimizer")
    ] = 16
    epochs: Annotated[int, Field(ge=1, title="Epochs", description="Passes over the data set")] = 1
    weight_decay: Annotated[float, Field(ge=0, title="Weight decay", description="Decoupled, as in AdamW")] = 0.05
