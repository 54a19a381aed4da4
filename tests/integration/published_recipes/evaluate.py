"""Two models and a grader that is a function: scores, an evaluation and a file as artifacts."""

from typing import Annotated

from adaptive_harmony import EvalSample, EvalSampleInteraction, EvaluationArtifact, StringThread
from adaptive_harmony.artifacts import CustomArtifact
from adaptive_harmony.core.utils import async_map_fallible
from adaptive_harmony.graders import BaseGrader
from adaptive_harmony.parameters import Dataset, Model, dataset_kinds
from adaptive_harmony.runtime import InputConfig, RecipeContext, recipe_main
from pydantic import Field


class EvaluateConfig(InputConfig):
    """Models to compare on the same prompts."""

    models: Annotated[set[Model], Field(title="Models", description="Which models to compare")]
    prompts: Dataset[dataset_kinds.Prompt]


async def shortness(thread: StringThread) -> float:
    """1 for an empty answer, less for a longer one."""
    return 1 / (1 + len(thread.last_content()))


@recipe_main
async def evaluate(config: EvaluateConfig, ctx: RecipeContext) -> None:
    prompts = await config.prompts.load(ctx)
    grader = BaseGrader.from_function("shortness", shortness)
    ctx.job.register_stages([f"Evaluate {model.model_key}" for model in config.models])
    samples = []
    for model in config.models:
        builder = await model.to_builder(ctx, kv_cache_len=4096, tokens_to_generate=8)
        judged = (await builder.spawn_inference(f"judged-{model.model_key}")).temperature(0.0)
        stage = ctx.job.stage_notifier(f"Evaluate {model.model_key}")
        answers = await async_map_fallible(judged.generate, prompts, stage_notifier=stage)
        for answer in answers:
            interaction = EvalSampleInteraction(thread=answer, source=model.model_key)
            grade = await grader.grade(answer)
            samples.append(EvalSample(interaction=interaction, grades=[grade], dataset_key=config.prompts.dataset_key))
        await judged.dealloc()
    logs = grader.get_logs(clear=True)
    notes = CustomArtifact("notes.txt", ctx)
    notes.write(f"mean {logs['score/mean']:.3f} of {logs['score/count']:.0f}")
    notes.finalize()
    assert len(samples) == len(prompts) * len(config.models)
    RecipeContext.log_eval_result(samples)
    artifact = EvaluationArtifact("comparison", ctx)
    artifact.add_samples(samples)
