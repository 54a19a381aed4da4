"""Supervised fine-tuning of an adapter, with validation and samples on the way."""

from typing import Annotated

from adaptive_harmony.common import SFT, GenerateSamplesCallback, ValidationLossCallback
from adaptive_harmony.metric_logger import get_prod_logger
from adaptive_harmony.parameters import Dataset, Model
from adaptive_harmony.runtime import InputConfig, RecipeContext, recipe_main
from pydantic import Field


class FinetuneConfig(InputConfig):
    """What the form shows."""

    model_to_train: Annotated[Model, Field(title="Model", description="The model to start from")]
    dataset: Annotated[Dataset, Field(title="Lessons", description="Prompts with completions")]
    output_model_key: Annotated[str, Field(description="The name of the new model")] = "student"
    learning_rate: float = 1e-2
    samples_per_batch: int = 4


@recipe_main
async def main(config: FinetuneConfig, ctx: RecipeContext) -> None:
    ctx.job.register_stages(["Load", "Train"])
    lessons = await config.dataset.load(ctx)
    split = len(lessons) * 3 // 4
    ctx.job.report_progress("Load", len(lessons), len(lessons))

    builder = await config.model_to_train.to_builder(ctx, kv_cache_len=4096, tokens_to_generate=8)
    model = await builder.with_adapter().spawn_train("student", max_batch_size=256)
    logger = get_prod_logger(ctx)
    callbacks = [
        ValidationLossCallback(lessons[split:], model, frequency=0.5),
        GenerateSamplesCallback(lessons[split:], model.temperature(0.0), frequency=0.5),
    ]
    await SFT(
        dataset=lessons[:split],
        model=model,
        logger=logger,
        stage_notifier=ctx.job.stage_notifier("Train"),
        callbacks=callbacks,
        lr=config.learning_rate,
        samples_per_batch=config.samples_per_batch,
        epochs=4,
    ).run()
    await model.save(config.output_model_key, ctx=ctx)
    logger.close()
