"""Distillation on a real worker: one layer of a model learns to say what the whole model says."""

import asyncio
from pathlib import Path

import pytest

from harmonia.client import HarmonyClient, InferenceModel, StringThread, TokenizedThread, TrainingModel
from harmonia.client.recipe import JournalJobNotifier, RecipeConfig, RecipeContext, run_recipe
from harmonia.client.recipe.journal_state import read_metrics, read_restore_data
from harmonia.errors import InvalidRequestError
from harmonia.trainers import Distillation
from tests.unit.trainers.recorders import MAX_BATCH_SIZE, Records, Stage

PROMPTS = [StringThread([("user", f"{number} + 1?")]) for number in range(12)]


async def teacher_of(client: HarmonyClient, tiny: Path) -> InferenceModel:
    teacher = await client.model(str(tiny), kv_cache_len=8192, tokens_to_generate=16).spawn_inference("teacher")
    return teacher.temperature(0)


async def answers_of(teacher: InferenceModel) -> list[TokenizedThread]:
    return list(await asyncio.gather(*map(teacher.generate_tokens, PROMPTS)))


async def student_of(client: HarmonyClient, tiny: Path) -> TrainingModel:
    builder = client.model(str(tiny), kv_cache_len=8192, tokens_to_generate=16).keep_layers([1])
    return await builder.spawn_train("student", MAX_BATCH_SIZE)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "total_variation"])
async def test_it_comes_to_agree(
    client: HarmonyClient, tiny: Path, records: Records, stage: Stage, divergence: str
) -> None:
    teacher, student = await teacher_of(client, tiny), await student_of(client, tiny)
    trainer = Distillation(
        await answers_of(teacher), student, teacher, records, stage, divergence=divergence, lr=0.01, epochs=12
    )
    await trainer.run()
    assert trainer.training_completion_percentage >= 1
    for name in ("agreement", "overlap"):
        values = records.column(name)
        assert sum(values[-2:]) > sum(values[:2]), name
    assert records.column("loss")[-1] < records.column("loss")[0]
    assert stage.progress[-1] == (144, 144)


async def test_its_own_answers_are_corrected(client: HarmonyClient, tiny: Path, records: Records, stage: Stage) -> None:
    teacher, student = await teacher_of(client, tiny), await student_of(client, tiny)
    answers = await answers_of(teacher)
    short = student.max_gen_len(5)
    await Distillation(answers, short, teacher, records, stage, on_policy_share=1.0, samples_per_batch=6).run()
    assert records.column("num_samples") == [6, 6]
    assert all(0 < count <= 6 * 5 for count in records.column("num_tokens"))


async def test_it_goes_on_at_a_checkpoint(
    address: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARMONY_NO_CHECKPOINTING")
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    config, folder = RecipeConfig(harmony_url=address, job_id="job-distil"), tmp_path / "job"

    async def recipe(ctx: RecipeContext) -> None:
        teacher, student = await teacher_of(ctx.client, tiny), await student_of(ctx.client, tiny)
        await Distillation(await answers_of(teacher), student, teacher, samples_per_batch=2).run()

    def num_steps() -> int:
        return sum("agreement" in record.metrics for record in read_metrics(folder))

    async with RecipeContext.from_config(config, job=JournalJobNotifier(folder, "job-distil")) as ctx:
        await run_recipe(ctx, recipe, {})
    assert num_steps() == 6
    job, restore_data = JournalJobNotifier(folder, "job-distil"), read_restore_data(folder)
    async with RecipeContext.from_config(config, job=job, checkpoint_restore_data=restore_data) as ctx:
        await run_recipe(ctx, recipe, {})
    assert num_steps() == 8  # the last checkpoint was after two thirds


async def test_what_cannot_be_learned_from(client: HarmonyClient, tiny: Path, records: Records, stage: Stage) -> None:
    teacher, student = await teacher_of(client, tiny), await student_of(client, tiny)
    answers = await answers_of(teacher)
    with pytest.raises(InvalidRequestError, match="sample 0 is a StringThread; give what generate_tokens"):
        Distillation(PROMPTS, student, teacher, records, stage)  # type: ignore[arg-type]
    unweighted = answers[0].with_weight_assistant_turns_from_index(5)
    with pytest.raises(InvalidRequestError, match="sample 1 has no turn to learn"):
        Distillation([answers[0], unweighted], student, teacher, records, stage)
    with pytest.raises(InvalidRequestError, match="on_policy_share is a share"):
        Distillation(answers, student, teacher, records, stage, on_policy_share=2.0)
    with pytest.raises(InvalidRequestError, match="the data set is empty"):
        Distillation([], student, teacher, records, stage)
