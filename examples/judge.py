"""Learn from a judge that shares the weights: of four answers, imitate the one that the judge likes best.

    harmonia run examples/judge.py -- --model ./SmolLM2-135M-Instruct

The judge is the bare model, the student an adapter on it. There is one copy of the backbone, and their requests run in
the same batches; `spawn_inference` reserves no memory for training.
"""

import asyncio
from statistics import fmean

from harmonia.client import InferenceModel, StringThread
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

TOPICS = ["the sea", "winter", "an old friend", "bread", "the Moon", "a long road"]
QUESTION = "Text: {}\n\nIs this text cheerful? Answer yes or no."


class Config(InputConfig):
    """What can be set."""

    model: Model
    steps: int = 4
    answers: int = 4
    learning_rate: float = 5e-4


async def cheerfulness(judge: InferenceModel, text: str) -> float:
    """How much more likely the judge finds yes than no, in nats."""
    question = ("user", QUESTION.format(text))
    answers = [StringThread([question, ("assistant", answer)]) for answer in ("Yes", "No")]
    yes, no = await asyncio.gather(*(judge.logprobs(answer) for answer in answers))
    return yes - no


@recipe_main
async def main(config: Config, ctx: RecipeContext) -> None:
    """Sample, judge, imitate the best; each line is the mean score of what was sampled in a step."""
    builder = await config.model.to_builder(ctx, tokens_to_generate=32)
    student = await builder.with_adapter().spawn_train("student", max_batch_size=1024)
    judge = await builder.spawn_inference("judge")
    stage = ctx.job.stage_notifier("Training")

    async def learn(topic: str) -> float:
        prompt = StringThread([("user", f"Write one sentence about {topic}.")])
        drafts = await asyncio.gather(*(student.generate(prompt) for _ in range(config.answers)))
        scores = await asyncio.gather(*(cheerfulness(judge, draft.last_content()) for draft in drafts))
        best = drafts[scores.index(max(scores))]  # here the prompt still has weight: it was the last turn of a thread
        await student.train_language_modelling(best.with_weight_last_assistant_turn())
        return fmean(scores)

    for step in range(1, config.steps + 1):
        scores = await asyncio.gather(*(learn(topic) for topic in TOPICS))
        await student.optim_step(config.learning_rate, wd=0.0, max_grad_norm=1.0, skip_nan_gradients=False)
        print(f"step {step}  mean score {fmean(scores):+.3f}")
        stage.report_progress(config.steps, step)
    await student.save("cheerful", ctx=ctx)
