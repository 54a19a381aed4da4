"""The built-in recipe `specdec_alignment`: its form, and what it measures. Runs are in tests/integration."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from harmonia.client.parameters import Model
from harmonia.client.recipe import RecipeContext, load_recipe
from harmonia.client.recipe.inputs import keys_of, validate_input
from harmonia.client.recipe.probe import input_schema
from harmonia.errors import InvalidRequestError
from harmonia.recipes import find_recipe, recipe_keys, recipe_summary
from harmonia.recipes.specdec_alignment.config import Layers, SpecdecAlignmentConfig
from harmonia.recipes.specdec_alignment.main import Measured, load_prompts

KEY = "specdec_alignment"
GIVEN = {"target_model": "large", "draft_model": "layers:4", "dataset": "prompts.jsonl"}
CONTEXT = cast("RecipeContext", SimpleNamespace(control_plane=None))


def config(**changes: Any) -> SpecdecAlignmentConfig:
    return SpecdecAlignmentConfig.model_validate({**GIVEN, **changes})


def test_the_catalogue_finds_it() -> None:
    folder = find_recipe(KEY)
    assert folder is not None and KEY in recipe_keys()
    assert recipe_summary(KEY).startswith("Model Acceleration (Speculative Decoding)")
    recipe = load_recipe(folder)
    assert recipe.config_class is not None and recipe.config_class.__name__ == "SpecdecAlignmentConfig"
    schema = input_schema(recipe)
    assert schema["required"] == list(GIVEN)
    assert {schema["properties"][name]["type"] for name in GIVEN} == {"string"}
    assert schema["properties"]["dataset"]["kind"] == "Prompt"


def test_every_field_is_told_of() -> None:
    fields = {name: field for name, field in SpecdecAlignmentConfig.model_fields.items() if name != "union_variant"}
    assert all(field.title and field.description for field in fields.values())


def test_the_readme_tells_of_every_parameter() -> None:
    folder = find_recipe(KEY)
    assert folder is not None
    rows = [line.split("|")[1:3] for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    told = {name.strip(" `"): default.strip() for name, default in rows}
    assert list(told) == [name for name in SpecdecAlignmentConfig.model_fields if name != "union_variant"]
    for name, field in SpecdecAlignmentConfig.model_fields.items():
        if name in told and not field.is_required():
            spelled = {None: "none", False: "off", True: "on"}.get(field.default, field.default)
            assert told[name] == spelled or float(told[name]) == field.default, name


def test_a_draft_is_a_model_or_layers_of_the_target() -> None:
    cut, named = config().draft_model, config(draft_model="small").draft_model
    assert isinstance(cut, Layers) and cut.count == 4
    assert isinstance(named, Model) and named.model_key == "small"
    assert config().model_dump()["draft_model"] == "layers:4"
    assert keys_of(config(), "model") == {"target_model": "large"}
    assert keys_of(config(draft_model="small"), "model") == {"target_model": "large", "draft_model": "small"}


@pytest.mark.parametrize("draft", ["layers:0", "layers:-1", "layers:", "layers:two", "layers:1.5", "layers:²"])
def test_numbers_of_layers_that_cannot_be(draft: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"draft_model: .*whole number from 1 on, such as layers:4, got"):
        validate_input(SpecdecAlignmentConfig, GIVEN | {"draft_model": draft})


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("large", "large_accelerated"),
        ("support/v2", "support/v2_accelerated"),
        ("model_registry://support/v2", "support/v2_accelerated"),
        ("/models/Qwen3-0.6B", "Qwen3-0.6B_accelerated"),
        ("./Smol.Q4_1.gguf", "Smol.Q4_1_accelerated"),
    ],
)
def test_the_result_is_named_after_the_target(target: str, key: str) -> None:
    assert config(target_model=target).output_key == key
    assert config(target_model=target, output_model_key="fast").output_key == "fast"


def test_what_knows_nothing_yet_learns_faster() -> None:
    rates = [
        config(**changes).peak_learning_rate
        for changes in (
            {},
            {"draft_model": "small", "adapter": True},
            {"draft_model": "small"},
            {"draft_model": "small", "learning_rate": 3e-6},
        )
    ]
    assert rates == [1e-3, 2e-4, 5e-5, 3e-6]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_draft_steps": 0},
        {"num_draft_steps": 9},
        {"divergence": "jensen_shannon"},
        {"on_policy_share": 1.5},
        {"validation_share": 0},
        {"max_sequence_length": 8},
        {"steps": 0},
        {"epochs": 0},
        {"epochs": float("inf")},
        {"temperature": 101.0},
        {"output_model_key": "a//b"},
    ],
)
def test_values_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)


async def test_prompts_are_held_out_at_random_and_the_same_each_time(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(n)}], "completion": "unused"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = config(dataset=str(tmp_path / "rows.jsonl"), validation_share=0.1)
    prompts, held_out = await load_prompts(asked, CONTEXT)
    turns = [thread.get_turns() for thread in (*prompts, *held_out)]
    assert (len(prompts), len(held_out)) == (36, 4)
    assert {turn.content for (turn,) in turns} == {str(n) for n in range(40)}
    again = await load_prompts(asked, CONTEXT)
    assert [thread.get_turns() for thread in again[1]] == turns[36:]


@pytest.mark.parametrize("count", [0, 1])
async def test_too_few_prompts(count: int, tmp_path: Path) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "why"}]})
    (tmp_path / "rows.jsonl").write_text("\n".join([row] * count))
    with pytest.raises(InvalidRequestError, match=r"give more prompts|empty|no rows"):
        await load_prompts(config(dataset=str(tmp_path / "rows.jsonl")), CONTEXT)


def test_what_is_not_there_counts_as_nothing() -> None:
    nothing = Measured(0, 0, 0, 0.0)
    assert (nothing.acceptance_rate, nothing.tokens_per_s) == (0.0, 0.0)
    measured = Measured(8, 2, 30, 1.5)
    assert (measured.acceptance_rate, measured.tokens_per_s) == (0.25, 20.0)
