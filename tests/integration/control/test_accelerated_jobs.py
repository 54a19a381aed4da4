"""From a job that trains a draft to a deployment that decodes with it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.control.accelerating import FAST, PROJECT, TARGET, accepted, ask, ask_until, client
from tests.integration.control.conftest import Plane

RECIPE = '''
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.threads import StringThread

class Config(InputConfig):
    target: str

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    """Trains a copy of the target a little, and saves it as its draft."""
    uri = (await ctx.control_plane.get_model_config(config.target)).harmony_url
    draft = await ctx.client.model(uri, kv_cache_len=1024).spawn_train("draft", 256)
    await draft.train_language_modelling(StringThread([("user", "Hello"), ("assistant", "Well")]))
    await draft.optim_step(1e-4, 0.0, 1.0, False)
    await draft.save(f"{config.target}_accelerated", ctx=ctx, draft_target=uri, num_draft_steps=2)
'''


def test_a_draft_that_a_job_saved_is_deployed(plane: Plane, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "draft.py"
    file.write_text(RECIPE)
    with client(plane) as adaptive:
        adaptive.projects.create(PROJECT)
        adaptive.models.add(str(tiny), TARGET)
        adaptive.recipes.upload(file)
        job = adaptive.jobs.wait(adaptive.jobs.run("draft", 1, {"target": TARGET}).id, timeout_s=100)
        assert job.status == "COMPLETED", adaptive.jobs.logs(job.id)
        found = adaptive.models.get(FAST)
        assert found is not None and found.backbone is not None
        assert (found.is_spec_dec_draft, found.backbone.key) == (True, TARGET)
        assert adaptive.models.deploy(FAST, wait=True).num_draft_steps == 2
        fast = ask_until(adaptive, FAST, accepted)
        adaptive.models.deploy(TARGET, wait=True)
        assert ask(adaptive, TARGET).choices[0].message.content == fast.choices[0].message.content
