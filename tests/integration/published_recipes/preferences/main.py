"""Direct preference optimisation, then a reward model from the same pairs: a recipe of several files."""

from adaptive_harmony import StringThread
from adaptive_harmony.common import DPO, RewardModelling
from adaptive_harmony.core.utils import async_map
from adaptive_harmony.metric_logger import StdoutLogger
from adaptive_harmony.runtime import RecipeContext, recipe_main

from .config import PreferenceConfig


def both_answers(thread: StringThread) -> tuple[StringThread, StringThread]:
    """The prompt with the better and with the worse answer."""
    good, bad = (thread.metadata[name] for name in ("preferred_completion", "other_completion"))
    return thread.assistant(good), thread.assistant(bad)


@recipe_main
async def main(ctx: RecipeContext, config: PreferenceConfig) -> None:
    ctx.job.register_stages(["dpo", "reward"])
    pairs = [both_answers(thread) for thread in await config.pairs.load(ctx)]

    policy = await config.policy.with_adapter().spawn_train("policy", ctx, max_batch_size=256)
    stage = ctx.job.stage_notifier("dpo")
    trainer = DPO(pairs, policy, StdoutLogger(), stage, lr=1e-2, samples_per_batch=4, kl_beta=config.kl_beta, epochs=3)
    await trainer.run()

    reward = await config.policy.with_adapter().into_scoring_model().spawn_train("reward", ctx, max_batch_size=256)
    stage = ctx.job.stage_notifier("reward")
    await RewardModelling(pairs, reward, StdoutLogger(), stage, lr=1e-2, samples_per_batch=4, epochs=3).run()
    margins = await async_map(lambda pair: margin(reward, *pair), pairs)
    assert reward.is_scalar() and sum(margins) > 0
    await policy.save("polite", ctx=ctx)
    await reward.save("polite-reward", ctx=ctx)


async def margin(reward, good, bad) -> float:  # type: ignore[no-untyped-def]
    """By how much the model prefers the better answer."""
    return await reward.score_last_token(good) - await reward.score_last_token(bad)
