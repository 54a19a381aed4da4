"""Supervised fine-tuning: teach a model to answer as a data set does."""

import random

from harmonia.client import StringThread
from harmonia.client.artifacts import save_with_artifact
from harmonia.client.recipe import RecipeContext, recipe_main
from harmonia.errors import InvalidRequestError
from harmonia.recipes.naming import RenamingLogger, require_other_key
from harmonia.trainers import SFT, ValidationLossCallback, get_prod_logger

from .config import SftConfig

STAGE = "Training"
METRICS = {"loss": "train/loss", "grad_norm": "train/gradient_norm", "validation/loss": "val/loss"}


@recipe_main
async def sft(config: SftConfig, ctx: RecipeContext) -> None:
    """Teach a model to answer as a data set does, and save it."""
    ctx.job.register_stages([STAGE])
    samples, held_out = await load_samples(config, ctx)

    builder = await config.model_to_train.to_builder(ctx, tp=config.tp)
    if config.adapter:
        about = await ctx.client.describe(builder.to_python_dict()["path"])
        await require_other_key(ctx, config.output_model_key, about.base or about.path)
        builder = builder.with_adapter()
    # Its own for each job, as a worker may have several, and the same when the job is resumed.
    name = f"sft-{ctx.job.job_id[-6:]}"
    model = await builder.spawn_train(name, config.max_sequence_length)

    await SFT(
        dataset=samples,
        model=model,
        logger=RenamingLogger(get_prod_logger(ctx), METRICS),
        stage_notifier=ctx.job.stage_notifier(STAGE),
        callbacks=[ValidationLossCallback(held_out, model)] if held_out else [],
        lr=config.learning_rate,
        samples_per_batch=config.samples_per_batch,
        max_grad_norm=config.max_grad_norm,
        epochs=config.epochs,
        weight_decay=config.weight_decay,
        checkpoint_restore_data=ctx.checkpoint_restore_data,
    ).run()
    await save_with_artifact(model, config.output_model_key, ctx=ctx)


async def load_samples(config: SftConfig, ctx: RecipeContext) -> tuple[list[StringThread], list[StringThread]]:
    """What to train on, and what to validate on: the data set made for that, or a random share of the other."""
    samples = await config.dataset.load(ctx)
    if config.validation_dataset is not None:
        return samples, await config.validation_dataset.load(ctx)
    if not config.run_validation:
        return samples, []
    count = max(1, round(config.validation_share * len(samples)))
    if count == len(samples):
        raise InvalidRequestError(
            f"validation_share {config.validation_share} of {len(samples)} samples leaves none to train on; "
            "give a validation_dataset, or more samples"
        )
    shuffled = random.Random(0).sample(samples, len(samples))  # the same share when a checkpoint is resumed
    return shuffled[count:], shuffled[:count]
