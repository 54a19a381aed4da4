"""A loss of one's own through `train_tangents`, without a configuration."""

import asyncio

import numpy as np
from adaptive_harmony import StringThread, TrainingModel
from adaptive_harmony.metric_logger import get_prod_logger
from adaptive_harmony.parameters import Model
from adaptive_harmony.runtime import RecipeContext, SimpleProgressNotifier, recipe_main

CONFIDENCE = 0.8
LESSON = StringThread([("user", "What is blue?"), ("assistant", "The sky.")])


async def focal(model: TrainingModel, thread: StringThread) -> float:
    """-(1 - p)^2 log p of every weighted token: tokens that the model knows count for little."""
    tokens, patches, weights = await model.serialize_thread(thread)
    logprobs = np.array(await model.logprobs_per_token(await model.tokenize_thread(thread)))
    p = np.exp(logprobs)
    tangents = np.zeros(len(tokens) - 1)
    tangents[np.array(weights[1:]) > 0] = (1 - p) ** 2 - 2 * p * (1 - p) * logprobs
    await model.train_tangents(tokens[:-1], patches, tangents, tokens[1:])
    return float(-((1 - p) ** 2 * logprobs).sum())


@recipe_main
async def main(ctx: RecipeContext) -> None:
    ctx.job.register_stages(["focal"])
    logger = get_prod_logger(ctx)
    builder = await Model(model_key="tiny").to_builder(ctx, kv_cache_len=4096)
    model = await builder.with_adapter().spawn_train("focal", 256)
    async with SimpleProgressNotifier(ctx.job.stage_notifier("focal")):
        losses = []
        for _ in range(6):
            batch = await asyncio.gather(*(focal(model, LESSON) for _ in range(2)))
            logs = await model.optim_step(1e-2, 0.0, 1.0, False)
            losses.append(float(np.mean(batch)))
            logger(logs | {"policy/focal": losses[-1]})
    assert losses[-1] < losses[0]
    await model.save("focal")
