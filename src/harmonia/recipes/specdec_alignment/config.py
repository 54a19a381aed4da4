"""What model acceleration can be told."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_serializer

from harmonia.client.parameters import Dataset, Model, dataset_kinds, model_kinds
from harmonia.client.recipe import InputConfig
from harmonia.protocol.instances import DEFAULT_DRAFT_STEPS, MAX_DRAFT_STEPS, SCHEME
from harmonia.protocol.losses import Divergence
from harmonia.recipes.naming import ModelKey

SUFFIX = "_accelerated"
CUT_LR, ADAPTER_LR, WHOLE_LR = 1e-3, 2e-4, 5e-5
"""Learning rates of what knows nothing yet, and of what does."""
_LAYERS = "layers:"


class Layers(BaseModel):
    """A draft that is cut from its target: so many of its layers. As a string `layers:N`."""

    count: int
    """The first so many."""

    @model_serializer
    def serialize(self) -> str:
        """As it was given."""
        return f"{_LAYERS}{self.count}"

    @classmethod
    def read(cls, value: Any) -> Any:
        """Take `layers:N`; anything else is left to the next. ValueError where N is not a number from 1 on."""
        if not isinstance(value, str) or not value.startswith(_LAYERS):
            return value
        number = value.removeprefix(_LAYERS)
        if not (number.isascii() and number.isdigit() and int(number) >= 1):
            raise ValueError("layers:N takes N layers of the target, a whole number from 1 on, such as layers:4")
        return cls(count=int(number))


_DRAFT = "A model: its key in the registry, or a path on the worker's machine; or layers:N, cut from the target."
DraftModel = Annotated[
    Layers | Model[model_kinds.Trainable],
    BeforeValidator(Layers.read),
    WithJsonSchema({"type": "string", "title": "Model", "description": _DRAFT}),
]


class SpecdecAlignmentConfig(InputConfig):
    """A model to make faster, what shall draft for it, prompts, and how to learn from them."""

    target_model: Annotated[
        Model[model_kinds.Inferable],
        Field(title="Target model", description="The model to make faster; its answers stay the same"),
    ]
    draft_model: Annotated[
        DraftModel,
        Field(
            title="Draft model",
            description="A smaller model with the same tokenizer, or layers:N for N layers of the target",
        ),
    ]
    dataset: Annotated[
        Dataset[dataset_kinds.Prompt],
        Field(title="Dataset", description="Prompts, which the target answers; answers in it are not used"),
    ]
    output_model_key: Annotated[
        ModelKey | None,
        Field(
            title="Output model key",
            description=f"The trained draft is saved under this key; none: the target's key and {SUFFIX}",
        ),
    ] = None
    num_draft_steps: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_DRAFT_STEPS,
            title="Draft steps",
            description="Tokens that the draft proposes at a time, at most",
        ),
    ] = DEFAULT_DRAFT_STEPS
    adapter: Annotated[
        bool,
        Field(title="Train an adapter", description="Low-rank (LoRA), merged at the end; off trains all weights"),
    ] = False
    divergence: Annotated[
        Divergence,
        Field(title="Divergence", description="What brings the draft's distributions to the target's"),
    ] = "forward_kl"
    on_policy_share: Annotated[
        float,
        Field(ge=0, le=1, title="On-policy share", description="Of the samples, those that the draft answers itself"),
    ] = 0.0
    """0: a draft that was cut had 35.7 % of its first proposals right after 77 steps, and 35.1 % with a share of 0.25,
    which took 10 % longer."""
    temperature: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            title="Temperature",
            description="Temperature of the target's answers; 0 takes the likeliest tokens",
        ),
    ] = 0.0
    max_answer_tokens: Annotated[
        int, Field(ge=1, title="Longest answer", description="Tokens of an answer, at most")
    ] = 256
    max_sequence_length: Annotated[
        int,
        Field(
            ge=16,
            title="Max sequence length",
            description="Tokens of a micro-batch and of the longest sample; lower it if memory runs out",
        ),
    ] = 4096
    validation_share: Annotated[
        float,
        Field(gt=0, lt=1, title="Validation share", description="Prompts held out to measure with, at most 64"),
    ] = 0.05
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0,
            title="Learning rate",
            description="Peak: reached after a tenth of the training. none: "
            f"{CUT_LR:g} for layers:N, else {ADAPTER_LR:g} for an adapter and {WHOLE_LR:g} for all weights",
        ),
    ] = None
    max_grad_norm: Annotated[float, Field(gt=0, title="Max grad norm", description="Clip gradients to this norm")] = 1.0
    samples_per_batch: Annotated[
        int, Field(ge=1, title="Samples per batch", description="Samples of one step of the optimizer")
    ] = 8
    epochs: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            title="Epochs",
            description="Passes over the target's answers; a part of one is possible",
        ),
    ] = 2.0
    steps: Annotated[
        int | None,
        Field(ge=1, title="Steps", description="Steps of the optimizer, in place of epochs; none: as epochs say"),
    ] = None
    weight_decay: Annotated[float, Field(ge=0, title="Weight decay", description="Decoupled, as in AdamW")] = 0.01

    @property
    def peak_learning_rate(self) -> float:
        """The one that was asked for, or that of the kind of draft."""
        if self.learning_rate is not None:
            return self.learning_rate
        return CUT_LR if isinstance(self.draft_model, Layers) else ADAPTER_LR if self.adapter else WHOLE_LR

    @property
    def output_key(self) -> str:
        """Under which the draft is saved."""
        if self.output_model_key is not None:
            return self.output_model_key
        key = self.target_model.model_key.removeprefix(SCHEME)
        is_path = key.startswith(("/", ".", "~"))
        return f"{_stem(Path(key).expanduser().absolute()) if is_path else key}{SUFFIX}"


def _stem(path: Path) -> str:
    return path.stem if path.suffix == ".gguf" else path.name
