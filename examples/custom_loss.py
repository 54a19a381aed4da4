"""A loss of your own: unlikelihood training (Welleck et al., 2020) through `train_tangents`.

    harmonia run examples/custom_loss.py -- --model ./SmolLM2-135M-Instruct

A loss is any function of the tokens' log-probabilities. Read them, compute -dloss/dlogprob by hand, and hand that over:
the engine does the rest, for one adapter on a laptop as for a whole model on a GPU. It knows the slope of your loss and
not the loss, so what it reports as `loss` is the sum of slope times log-probability; log your own.
"""

import asyncio
import math

from harmonia.client import StringThread, TrainingModel
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.trainers import get_prod_logger

SAY = StringThread([("user", "Which tea should I try?"), ("assistant", "Try a smoky Lapsang Souchong.")])
AVOID = StringThread([("user", "Which tea should I try?"), ("assistant", "As a language model, I cannot drink tea.")])


class Config(InputConfig):
    """What can be set."""

    model: Model
    steps: int = 12
    learning_rate: float = 5e-4


async def train(model: TrainingModel, thread: StringThread, *, likely: bool) -> float:
    """Add the gradient of -log p, or of -log(1 - p), for each weighted token; returns the loss."""
    tokens, patches, weights = await model.serialize_thread(thread)
    logprobs = await model.logprobs_per_token(await model.tokenize_thread(thread))

    # A token's log-probability stands at the position before it, so everything is shifted by one.
    weighted = [position for position, weight in enumerate(weights[1:]) if weight]
    tangents = [0.0] * (len(tokens) - 1)
    loss = 0.0
    for position, logprob in zip(weighted, logprobs, strict=True):
        p = min(math.exp(logprob), 0.999)
        loss += -logprob if likely else -math.log1p(-p)
        tangents[position] = 1.0 if likely else -p / (1 - p)
    await model.train_tangents(tokens[:-1], patches, tangents, tokens[1:])
    return loss


@recipe_main
async def main(config: Config, ctx: RecipeContext) -> None:
    """Each line: both losses, the second of which keeps the model from what it should not say."""
    builder = await config.model.to_builder(ctx)
    model = await builder.with_adapter().spawn_train("student", max_batch_size=512)
    stage, log = ctx.job.stage_notifier("Training"), get_prod_logger(ctx)
    for step in range(1, config.steps + 1):
        say, avoid = await asyncio.gather(train(model, SAY, likely=True), train(model, AVOID, likely=False))
        await model.optim_step(config.learning_rate, wd=0.0, max_grad_norm=1.0, skip_nan_gradients=False)
        print(f"step {step:2}  say {say:7.3f}  avoid {avoid:7.3f}")
        log({"say": say, "avoid": avoid})
        stage.report_progress(config.steps, step)
