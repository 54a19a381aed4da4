"""Models in the config of a recipe, resolved by a real worker."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from harmonia.client.artifacts import save_with_artifact
from harmonia.client.inference import InferenceModel
from harmonia.client.parameters import Model
from harmonia.client.parameters.model_kinds import Inferable, Trainable
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.training import TrainingModel
from harmonia.errors import InsufficientMemoryError, InvalidRequestError, UnknownModelError
from harmonia.threads import StringThread

# ------------------------------------------------------------------------------------------------ in a config


class Config(BaseModel):
    """A recipe's."""

    model: Annotated[Model[Trainable], Field(title="Model to train", description="It learns.")]
    judges: set[Model[Inferable]] = set()
    teacher: Model | None = None


def test_a_model_is_a_string() -> None:
    config = Config.model_validate({"model": "tiny", "judges": ["a", {"model_key": "b"}, "a"]})
    assert config.model_dump(mode="json") | {"judges": None} == {"model": "tiny", "judges": None, "teacher": None}
    assert sorted(config.model_dump(mode="json")["judges"]) == ["a", "b"]
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_form_asks_for_a_string() -> None:
    for mode in ("validation", "serialization"):
        schema = Config.model_json_schema(mode=mode)
        field = schema["properties"]["model"]
        assert (field["title"], field["description"]) == ("Model to train", "It learns.")
        assert schema["$defs"][field["$ref"].rsplit("/", maxsplit=1)[-1]]["type"] == "string"


@pytest.mark.parametrize("given", ["", " ", {"model_key": ""}, {}, 3, None])
def test_strange_keys(given: Any) -> None:
    with pytest.raises(ValidationError, match=r"model_key|Model"):
        Model.model_validate(given)


def test_settings_are_recorded_on_copies() -> None:
    model = Model[Trainable](model_key="tiny")
    changed = model.tp(2).with_adapter().api_key("secret")
    assert type(changed) is Model[Trainable]
    assert changed.model_dump() == "tiny"
    assert "secret" not in repr(changed) + changed.model_dump_json()
    assert hash(changed) == hash(model)


# ------------------------------------------------------------------------------------------------ builders


async def built(model: Model[Any], ctx: RecipeContext, **arguments: Any) -> dict[str, Any]:
    """The settings of its builder."""
    return (await model.to_builder(ctx, **arguments)).to_python_dict()


async def test_defaults_are_overridden_one_by_one(ctx: RecipeContext) -> None:
    tuned = Model[Any](model_key="tuned")
    defaults = await built(tuned, ctx)
    assert defaults["path"] == "model_registry://tuned"
    assert (defaults["kv_cache_len"], defaults["tokens_to_generate"], defaults["tp"]) == (256, 7, 1)
    for name in ("kv_cache_len", "tokens_to_generate", "tp"):
        assert await built(tuned, ctx, **{name: 3}) == {**defaults, name: 3}
    assert (await built(tuned, ctx, extra_params={"seed": 5}))["extra_params"] == {"seed": 5}
    plain = await built(Model(model_key="tiny"), ctx)
    assert (plain["kv_cache_len"], plain["tokens_to_generate"]) == (None, 2048)


async def test_what_was_said_of_the_model_reaches_the_builder(ctx: RecipeContext) -> None:
    model = (
        Model[Any](model_key="tuned")
        .tp(2)
        .with_adapter(False)
        .with_draft("model_registry://tiny")
        .into_scoring_model()
        .extra_params(seed=1)
        .extra_params(precision="fp32")
        .tools(['{"type": "function", "function": {"name": "add"}}'])
        .api_key("secret")
    )
    args = await built(model, ctx, tp=4)
    assert (args["tp"], args["adapter_mode"], args["override_with_scalar_head"]) == (2, False, True)
    assert (args["with_draft"], args["num_draft_steps"]) == ("model_registry://tiny", 4)
    assert args["extra_params"] == {"seed": 1, "precision": "fp32"}
    assert args["tools"][0]["function"]["name"] == "add"
    assert args["api_key"] == "***"
    assert (await built(model.with_draft("x", 2), ctx))["num_draft_steps"] == 2


async def test_paths_are_paths_and_keys_are_keys(
    ctx: RecipeContext, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = registry / "tiny"
    monkeypatch.chdir(registry)
    monkeypatch.setenv("HOME", str(registry))
    os.makedirs("elsewhere", exist_ok=True)
    for key in (str(folder), "./tiny", "elsewhere/../tiny", "~/tiny"):
        path = (await built(Model(model_key=key if key[0] in "/.~" else f"./{key}"), ctx))["path"]
        assert Path(path).is_absolute() and Path(path).samefile(folder)
    for key in ("tiny", "model_registry://tiny"):
        assert (await built(Model(model_key=key), ctx))["path"] == "model_registry://tiny"


async def test_an_unknown_key_names_its_neighbours(ctx: RecipeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    for action in (Model(model_key="tinny").check(ctx), Model(model_key="tinny").to_builder(ctx)):
        with pytest.raises(UnknownModelError, match=r"no model 'tinny' in the registry .*; nearest are 'tiny'"):
            await action
    monkeypatch.chdir("/")
    with pytest.raises(UnknownModelError, match=r"no model 'usr' .*; for the path write \./usr"):
        await Model(model_key="usr").check(ctx)
    with pytest.raises(UnknownModelError, match="/none/such: no such file or folder"):
        await Model(model_key="/none/such").check(ctx)
    await Model(model_key="tiny").check(ctx)


async def test_broken_default_settings_are_named(ctx: RecipeContext) -> None:
    with pytest.raises(InvalidRequestError, match=r"settings of model 'broken' are broken: kv_cache_len: .*got 'much'"):
        await Model(model_key="broken").check(ctx)


# ------------------------------------------------------------------------------------------------ spawning


async def test_models_are_spawned(ctx: RecipeContext) -> None:
    policy = await Model[Any](model_key="tuned").with_adapter().spawn_train("policy", ctx, 64)
    judge = await Model[Any](model_key="tuned").spawn_inference("judge", ctx, tokens_to_generate=2)
    assert type(policy) is TrainingModel and type(judge) is InferenceModel
    thread = StringThread([("user", "Hi")]).assistant("Hello")
    await policy.train_language_modelling(thread)
    assert (await policy.optim_step(1e-3, 0.0, 1.0, False))["num_samples"] == 1
    long, short = await asyncio.gather(policy.generate_tokens(thread), judge.generate_tokens(thread))
    assert long.len_last_turn() <= 7 and short.len_last_turn() <= 2


@pytest.mark.parametrize(
    ("key", "arguments", "cause"),
    [
        ("tinny", {}, UnknownModelError),
        ("tiny", {"tp": 0}, InvalidRequestError),
        ("tiny", {"extra_params": {"colour": "blue"}}, InvalidRequestError),
    ],
)
async def test_failures_name_the_model(
    ctx: RecipeContext, key: str, arguments: dict[str, Any], cause: type[Exception]
) -> None:
    model = Model[Any](model_key=key)
    for what, action in (
        ("training", model.spawn_train("a", ctx, 64, **arguments)),
        ("inference", model.spawn_inference("a", ctx, **arguments)),
    ):
        with pytest.raises(RuntimeError, match=f"Failed to spawn {what} model '{key}': .+") as caught:
            await action
        assert isinstance(caught.value.__cause__, cause)


async def test_what_does_not_fit_fails_as_the_other_failures(ctx: RecipeContext) -> None:
    with pytest.raises(RuntimeError, match="Failed to spawn inference model 'tiny'") as caught:
        await Model(model_key="tiny").spawn_inference("a", ctx, kv_cache_len=10**12)
    assert isinstance(caught.value.__cause__, InsufficientMemoryError)


# ------------------------------------------------------------------------------------------ with a control plane


class Project:
    """The part of a control plane that keeps the settings of models."""

    async def get_model_config(self, model_key: str) -> SimpleNamespace:
        """Those of one."""
        if model_key != "deployed":
            raise UnknownModelError(f"no model {model_key!r} in the project")
        extra = '{"seed": 9, "precision": "fp32"}'
        return SimpleNamespace(
            model_key=model_key, harmony_url="model_registry://tiny", tp=1, kv_cache_len=512, extra_params=extra
        )


async def test_a_control_plane_gives_address_and_settings(ctx: RecipeContext) -> None:
    ctx.control_plane = Project()  # type: ignore[assignment]
    args = await built(Model(model_key="deployed"), ctx, extra_params={"seed": 1})
    assert (args["path"], args["tp"], args["kv_cache_len"]) == ("model_registry://tiny", 1, 512)
    assert args["extra_params"] == {"seed": 1, "precision": "fp32"}
    assert (await built(Model(model_key="deployed"), ctx, kv_cache_len=64))["kv_cache_len"] == 64
    with pytest.raises(UnknownModelError, match="no model 'tiny' in the project"):
        await Model(model_key="tiny").check(ctx)


async def test_a_model_is_saved_and_registered(ctx: RecipeContext, capsys: pytest.CaptureFixture[str]) -> None:
    model = await Model(model_key="tiny").with_adapter().spawn_train("policy", ctx, 64)
    assert await save_with_artifact(model, "runs/saved") == "runs/saved"
    assert "runs/saved" not in capsys.readouterr().out
    assert await save_with_artifact(model, "runs/registered", ctx=ctx) == "runs/registered"
    assert "model 'runs/registered'" in capsys.readouterr().out
    assert (await ctx.client.describe("model_registry://runs/registered")).kind == "adapter"
