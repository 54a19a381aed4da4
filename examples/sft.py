"""Teach a model to answer as a file of conversations does.

    harmonia run examples/sft.py -- --model ./SmolLM2-135M-Instruct --dataset examples/data/kettle.jsonl --epochs 12
Each line of the file is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}.
"""

from typing import Annotated

from pydantic import Field

from harmonia.client.parameters import Dataset, Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.trainers import SFT, GenerateSamplesCallback, get_prod_logger


class Config(InputConfig):
    """What `harmonia run examples/sft.py -- --help` shows; wrong values are refused before anything is loaded."""

    model: Annotated[Model, Field(description="a model of the registry, or the path of one")]
    dataset: Annotated[Dataset, Field(description="a .jsonl file of conversations")]
    save_as: Annotated[str, Field(description="key in the registry")] = "kettle-support"
    epochs: Annotated[int, Field(ge=1, description="how often each conversation is seen")] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3


@recipe_main
async def main(config: Config, ctx: RecipeContext) -> None:
    """Load, spawn, train, save."""
    conversations = await config.dataset.load(ctx)
    questions = [thread.with_weight_all_assistant_turns() for thread in conversations[:2]]

    # An adapter trains some millions of numbers beside a model that stays as it is; max_batch_size is in tokens.
    builder = await config.model.to_builder(ctx, tokens_to_generate=32)
    model = await builder.with_adapter(rank=16).spawn_train("student", max_batch_size=1024)

    await SFT(
        dataset=conversations,
        model=model,
        logger=get_prod_logger(ctx),
        stage_notifier=ctx.job.stage_notifier("Training"),
        callbacks=[GenerateSamplesCallback(questions, model.temperature(0.0), frequency=0.5)],
        lr=config.learning_rate,
        samples_per_batch=4,
        epochs=config.epochs,
    ).run()
    await model.save(config.save_as, ctx=ctx)
