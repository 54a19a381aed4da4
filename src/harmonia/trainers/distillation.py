"""Distillation: make a model say what another one would, such as a draft what its target would."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harmonia.client import InferenceModel, StringThread, TokenizedThread, TrainingModel
from harmonia.client.recipe.current import default_restore_data, default_stage
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.errors import InvalidRequestError
from harmonia.protocol.losses import Divergence
from harmonia.trainers.callbacks import RecipeCallback
from harmonia.trainers.checkpointing import CheckpointManager, SFTCheckpointData
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.loop import TrainingLoop
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.metric_loggers.production import default_logger
from harmonia.trainers.records import hash_hyperparams, log_args
from harmonia.trainers.resumable import ResumableTrainer
from harmonia.trainers.samples import prompt_of
from harmonia.trainers.schedules import CosineScheduler, Scheduler

DISTILLATION_HYPERPARAMS = {
    "divergence",
    "on_policy_share",
    "lr",
    "lr_scheduler",
    "samples_per_batch",
    "max_grad_norm",
    "epochs",
    "weight_decay",
    "skip_nan_gradients",
    "data_seed",
}
"""What must be the same for a checkpoint to be resumed."""


@log_args
@hash_hyperparams(DISTILLATION_HYPERPARAMS)
@dataclass(eq=False, repr=False)
class Distillation(ResumableTrainer):
    """Trains `model` towards the distributions of `teacher`: `await Distillation(answers, model, teacher).run()`.

    dataset: conversations that end in an answer, the one weighted turn, as `teacher.generate_tokens` gives them. Of a
    share of them, `on_policy_share`, the model answers the prompt itself, by the settings of the object, and the
    teacher corrects that: then it learns to go on from its own words. Every record has `agreement` and `overlap`, see
    `TrainingModel.optim_step`. Samples that the model refuses are left out, counted and reported. RuntimeError when too
    many are.
    """

    dataset: list[TokenizedThread]
    model: TrainingModel
    teacher: InferenceModel
    """Of the same client and with the same tokenizer."""
    logger: Logger = field(default_factory=default_logger)
    stage_notifier: StageNotifier = field(default_factory=lambda: default_stage("Distillation"))
    callbacks: Sequence[RecipeCallback] = ()
    divergence: Divergence = "forward_kl"
    on_policy_share: float = 0.0
    """Of the samples, 0 to 1."""
    lr: float = 1e-4
    lr_scheduler: Scheduler | None = None
    """Learning rate by the share that is done; None is `CosineScheduler(lr)`."""
    samples_per_batch: int = 32
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    """How often each sample is seen; with a value above 1 the last batch may reach into the next epoch."""
    weight_decay: float = 0.0
    skip_nan_gradients: bool = False
    """Leave out a step whose gradient is not finite, instead of raising."""
    checkpoint_restore_data: dict[str, Any] | None = None
    """What a checkpoint reported, to go on from there; in a recipe, by default what its job resumes from."""
    checkpoint_frequency: float = 0.2
    data_seed: int = 42

    hyperparams_hash: str = field(init=False)

    def __post_init__(self) -> None:
        _check_answers(self.dataset)
        if not 0 <= self.on_policy_share <= 1:
            raise InvalidRequestError(
                f"on_policy_share is a share of the samples, 0 to 1; got {self.on_policy_share}",
                field="on_policy_share",
            )
        self._chance = random.Random(self.data_seed)
        self._loop = TrainingLoop(
            dataset=DataSet(self.dataset, allow_looping=self.epochs > 1, seed=self.data_seed),
            model=self.model,
            logger=self.logger,
            stage_notifier=self.stage_notifier,
            callbacks=self.callbacks,
            schedule=self.lr_scheduler or CosineScheduler(self.lr),
            samples_per_batch=self.samples_per_batch,
            max_grad_norm=self.max_grad_norm,
            epochs=self.epochs,
            skip_nan_gradients=self.skip_nan_gradients,
            weight_decay=self.weight_decay,
        )
        self._checkpoints = CheckpointManager(
            recipe_name="Distillation",
            dataset=self._loop.dataset,
            # Answers that were generated once more may differ by rounding; what they answer must not.
            threads_dataset=[_prompt(answer) for answer in self.dataset],
            callbacks=self.callbacks,
            hyperparams_hash=self.hyperparams_hash,
            stage_notifier=self.stage_notifier,
            checkpoint_data_cls=SFTCheckpointData,
            checkpoint_frequency=self.checkpoint_frequency,
            checkpoint_restore_data=self.checkpoint_restore_data or default_restore_data(),
            logger=self.logger,
        )
        self._checkpoints.register_model(self.model, "model_checkpoint_name")

    async def train_sample(self, answer: TokenizedThread) -> None:
        """Add the gradient of one answer, or of the model's own to the same prompt."""
        if self._chance.random() < self.on_policy_share:
            answer = await self.model.generate_tokens(_prompt(answer))
        await self.model.train_distillation(answer, self.teacher, divergence=self.divergence)


def _prompt(answer: TokenizedThread) -> StringThread:
    return prompt_of(answer.detokenized())


def _check_answers(dataset: Sequence[Any]) -> None:
    """InvalidRequestError unless every sample is an answer in tokens of which something can be learned."""
    for index, sample in enumerate(dataset):
        if not isinstance(sample, TokenizedThread):
            raise InvalidRequestError(
                f"sample {index} is a {type(sample).__name__}; give what generate_tokens or tokenize_thread returned",
                field="dataset",
            )
        if not any(sample.get_turn_weights()):
            raise InvalidRequestError(
                f"sample {index} has no turn to learn, as all weights are 0; use with_weight_last_assistant_turn()",
                field="dataset",
            )
