"""A model that scores answers, learnt from pairs: the reward model of RLHF.

    harmonia run examples/reward_model.py -- --model ./SmolLM2-135M-Instruct

`into_scoring_model` replaces the head that names the next token by one row that gives a number. It begins at zero, and
is saved with the adapter.
"""

from typing import Annotated

from pydantic import Field

from harmonia.client import StringThread
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.trainers import RewardModelling, get_prod_logger

THINGS = ["a lamp", "a chair", "a radio", "a tent", "a kettle", "a clock", "a mirror", "a ladder", "a drum", "a bell"]
ORDER = "Where is my order of {}?"
KIND = "I am sorry for the delay. Your order of {} leaves us today."
RUDE = "Stop asking. Your order of {} comes when it comes."


class Config(InputConfig):
    """What can be set."""

    model: Annotated[Model, Field(description="a model of the registry, or the path of one")]
    save_as: Annotated[str, Field(description="key in the registry")] = "politeness"
    epochs: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4


def answered(thing: str, answer: str) -> StringThread:
    """A question about one thing, and an answer to it."""
    return StringThread([("user", ORDER.format(thing)), ("assistant", answer.format(thing))])


@recipe_main
async def main(config: Config, ctx: RecipeContext) -> None:
    """Train on most of the pairs and look at the others."""
    pairs = [(answered(thing, KIND), answered(thing, RUDE)) for thing in THINGS]
    builder = await config.model.to_builder(ctx)
    model = await builder.into_scoring_model().with_adapter().spawn_train("scorer", max_batch_size=1024)
    await RewardModelling(
        dataset=pairs[2:],
        model=model,
        logger=get_prod_logger(ctx),
        job_notifier=ctx.job.stage_notifier("Reward model"),
        lr=config.learning_rate,
        samples_per_batch=4,
        epochs=config.epochs,
    ).run()
    for kind, rude in pairs[:2]:
        print(f"kind {await model.score_last_token(kind):+.3f}   rude {await model.score_last_token(rude):+.3f}")
    await model.save(config.save_as, ctx=ctx)
