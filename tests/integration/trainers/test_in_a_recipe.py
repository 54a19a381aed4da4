"""What a trainer does by default inside a recipe: report to its job, and resume where that does."""

from pathlib import Path

import pytest

from harmonia.client.recipe import JournalJobNotifier, RecipeConfig, RecipeContext, read_journal, run_recipe
from harmonia.client.recipe.journal_state import read_metrics, read_restore_data
from harmonia.trainers import SFT
from tests.unit.trainers.recorders import lessons


async def test_a_trainer_reports_to_the_job_and_resumes_with_it(
    address: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARMONY_NO_CHECKPOINTING")
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    config, folder = RecipeConfig(harmony_url=address, job_id="job-7"), tmp_path / "job"

    async def recipe(ctx: RecipeContext) -> None:
        model = await ctx.client.model(str(tiny)).with_adapter(rank=2).spawn_train("policy", 256)
        await SFT(lessons(5), model, samples_per_batch=1).run()

    def num_steps() -> int:
        return sum("loss" in record.metrics for record in read_metrics(folder))

    async with RecipeContext.from_config(config, job=JournalJobNotifier(folder, "job-7")) as ctx:
        await run_recipe(ctx, recipe, {})
    state = read_journal(folder)
    assert [(stage.name, stage.processed, stage.total) for stage in state.stages] == [("SFT Training", 5, 5)]
    assert all(name.startswith("checkpoints/job-7/") for point in state.checkpoints for name in point.models.values())
    assert num_steps() == 5

    restore_data = read_restore_data(folder)
    job = JournalJobNotifier(folder, "job-7")
    async with RecipeContext.from_config(config, job=job, checkpoint_restore_data=restore_data) as ctx:
        await run_recipe(ctx, recipe, {})
    assert num_steps() == 6
