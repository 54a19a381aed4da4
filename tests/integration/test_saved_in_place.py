"""No save takes the place of what the saved model needs: the base of an adapter, the target of a draft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harmonia.client import HarmonyClient, StringThread, TrainingModel
from harmonia.client.recipe import RecipeConfig, RecipeContext, StdoutJobNotifier, run_recipe
from harmonia.errors import InvalidRequestError
from harmonia.models import open_model
from harmonia.recipes.sft.main import sft
from harmonia.recipes.specdec_alignment.main import specdec_alignment
from tests.integration.tiny_model import make_adapter

BASE, TUNED = "placed/base", "placed/tuned"


@pytest.fixture
def base(registry: Path, tiny: Path) -> str:
    """A base model of the registry, and an adapter of it."""
    folder = shutil.copytree(tiny, registry / "placed%2Fbase")
    adapter = make_adapter(registry / "placed%2Ftuned")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(folder)}))
    return f"model_registry://{BASE}"


@pytest.fixture(autouse=True)
def whole(base: str, registry: Path) -> Iterator[None]:
    yield
    assert open_model(registry / "placed%2Fbase").config.num_layers == 2, "the base is what it was"
    assert (registry / "placed%2Ftuned" / "adapter_config.json").exists()
    for name in ("base", "tuned"):
        shutil.rmtree(registry / f"placed%2F{name}")


async def test_a_draft_is_not_saved_as_its_target(client: HarmonyClient, base: str, registry: Path) -> None:
    draft = await client.model(base, kv_cache_len=512).keep_layers([0]).spawn_train("draft", 128)
    for target in (base, BASE, str(registry / "placed%2Fbase"), f"model_registry://{TUNED}"):
        with pytest.raises(InvalidRequestError, match=r"placed%2Fbase, which it needs .*choose another key"):
            await draft.save(BASE, draft_target=target)
    with pytest.raises(InvalidRequestError, match="placed%2Ftuned, which it needs"):
        await draft.save(TUNED, draft_target=f"model_registry://{TUNED}")
    await draft.save("placed/fast", draft_target=base)
    again = await client.model("model_registry://placed/fast", kv_cache_len=512).spawn_train("again", 128)
    with pytest.raises(InvalidRequestError, match="placed%2Fbase, which it needs"):
        await again.save(BASE)
    await again.save("placed/fast")


async def test_an_adapter_is_not_saved_as_its_base(client: HarmonyClient, base: str) -> None:
    async def learn(model: TrainingModel) -> TrainingModel:
        await model.train_language_modelling(StringThread([("user", "who"), ("assistant", "me")]))
        await model.optim_step(0.1)
        return model

    adapter = await learn(await client.model(base, kv_cache_len=512).with_adapter(rank=2).spawn_train("new", 128))
    with pytest.raises(InvalidRequestError, match="placed%2Fbase, which it needs"):
        await adapter.save(BASE)
    tuned = f"model_registry://{TUNED}"
    more = await learn(await client.model(tuned, kv_cache_len=512).with_adapter().spawn_train("more", 128))
    await more.save(TUNED)


@pytest.mark.parametrize(
    ("recipe", "models"),
    [(sft, {"model_to_train": BASE}), (specdec_alignment, {"target_model": TUNED, "draft_model": "layers:1"})],
    ids=["sft", "specdec_alignment"],
)
async def test_recipes_say_it_before_anything_is_loaded(
    recipe: Callable[..., Any], models: dict[str, str], address: str, base: str, tmp_path: Path
) -> None:
    row = {"messages": [{"role": "user", "content": "why"}], "completion": "so"}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    given = {"dataset": str(tmp_path / "rows.jsonl"), "output_model_key": BASE}
    config = RecipeConfig(harmony_url=address, job_id="placed")
    spawned = list[str]()
    async with RecipeContext.from_config(config, job=StdoutJobNotifier("placed")) as ctx:
        ctx.client.observe(lambda *_: None, lambda name, _: spawned.append(name))
        with pytest.raises(InvalidRequestError, match=f"output_model_key '{BASE}' is the key of .*choose another"):
            await run_recipe(ctx, recipe, {**given, **models})
    assert not spawned
