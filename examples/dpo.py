"""Prefer one answer over another: direct preference optimization (Rafailov et al., 2023).

    harmonia run examples/dpo.py -- --model ./SmolLM2-135M-Instruct

No reward model is needed: the log-probabilities of both answers, compared with those under a frozen copy of where the
model began, say how far it has come to prefer the first.
"""

from typing import Annotated

from pydantic import Field

from harmonia.client import StringThread
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.trainers import DPO, get_prod_logger

PREFERENCES = {
    "How do I boil an egg?": ("Eight minutes in boiling water.", "Well, that is a great question! Eggs are wonderful."),
    "What is the capital of Peru?": ("Lima.", "As you surely know, the capital of beautiful Peru is Lima!"),
    "Is tea older than coffee?": ("Yes, by centuries.", "Oh, what a lovely thing to ask! Let us explore it together."),
    "How far is the Moon?": ("About 384,000 km.", "Great question! The Moon has fascinated people for ages."),
}


class Config(InputConfig):
    """What can be set."""

    model: Annotated[Model, Field(description="a model of the registry, or the path of one")]
    save_as: Annotated[str, Field(description="key in the registry")] = "to-the-point"
    epochs: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4


def answered(question: str, answer: str) -> StringThread:
    """Only the last turn of a new thread has weight: the answer."""
    return StringThread([("user", question), ("assistant", answer)])


@recipe_main
async def main(config: Config, ctx: RecipeContext) -> None:
    """Train on pairs, then compare the answer to a question that was not among them."""
    pairs = [tuple(answered(question, answer) for answer in answers) for question, answers in PREFERENCES.items()]
    builder = await config.model.to_builder(ctx, tokens_to_generate=32)
    model = await builder.with_adapter().spawn_train("policy", max_batch_size=1024)
    greedy, unseen = model.temperature(0.0), StringThread([("user", "How many legs has a spider?")])
    before = (await greedy.generate(unseen)).last_content()
    await DPO(
        dataset=pairs,
        model=model,
        logger=get_prod_logger(ctx),
        stage_notifier=ctx.job.stage_notifier("DPO"),
        lr=config.learning_rate,
        samples_per_batch=4,
        epochs=config.epochs,
    ).run()
    print(f"before: {before}\nafter:  {(await greedy.generate(unseen)).last_content()}")
    await model.save(config.save_as, ctx=ctx)
