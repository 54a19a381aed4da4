"""The built-in recipe `sft`: its form, and what it trains and validates on. Runs are in tests/integration."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from harmonia.client.recipe import RecipeContext, load_recipe
from harmonia.errors import InvalidRequestError
from harmonia.recipes import find_recipe, recipe_keys, recipe_summary
from harmonia.recipes.naming import RenamingLogger
from harmonia.recipes.sft.config import SftConfig
from harmonia.recipes.sft.main import load_samples
from harmonia.trainers import StdoutLogger

GIVEN = {"model_to_train": "m", "output_model_key": "lessons/m", "dataset": "rows.jsonl"}
CONTEXT = cast("RecipeContext", SimpleNamespace(control_plane=None))


def write_rows(file: Path, count: int) -> Path:
    rows = [{"messages": [{"role": "user", "content": str(n)}], "completion": "yes"} for n in range(count)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def config(folder: Path, count: int = 20, **changes: Any) -> SftConfig:
    return SftConfig.model_validate({**GIVEN, "dataset": str(write_rows(folder / "rows.jsonl", count)), **changes})


def test_the_catalogue_finds_it() -> None:
    folder = find_recipe("sft")
    assert "sft" in recipe_keys() and folder is not None and find_recipe("sf") is None
    assert recipe_summary("sft").startswith("Supervised fine-tuning")
    recipe = load_recipe(folder)
    assert recipe.config_class is not None and recipe.config_class.__name__ == "SftConfig" and recipe.context_parameter


def test_the_defaults_are_those_of_the_form() -> None:
    settings = SftConfig.model_validate(GIVEN)
    assert (settings.adapter, settings.run_validation, settings.tp, settings.epochs) == (True, False, 1, 1)
    assert (settings.max_sequence_length, settings.samples_per_batch) == (10_000, 16)
    assert (settings.learning_rate, settings.max_grad_norm, settings.weight_decay) == (1e-5, 1.0, 0.05)
    fields = {name: field for name, field in SftConfig.model_fields.items() if name != "union_variant"}
    assert len(fields) == 14 and all(field.title and field.description for field in fields.values())


def test_the_readme_tells_of_every_parameter() -> None:
    folder = find_recipe("sft")
    assert folder is not None
    rows = [line.split("|")[1:3] for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    told = {name.strip(" `"): default.strip() for name, default in rows}
    assert list(told) == [name for name in SftConfig.model_fields if name != "union_variant"]
    spelled = {"": "", "none": None, "off": False, "on": True}
    for name, field in SftConfig.model_fields.items():
        if name in told and not field.is_required():
            assert (spelled[told[name]] if told[name] in spelled else float(told[name])) == field.default, name


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", ".a", "a/.b", "a\\b", "a\n"])
def test_a_key_that_the_registry_would_refuse_is_refused_before_training(key: str) -> None:
    with pytest.raises(ValidationError, match="output_model_key"):
        SftConfig.model_validate(GIVEN | {"output_model_key": key})


async def test_validation_holds_out_the_same_random_share_each_time(tmp_path: Path) -> None:
    asked = config(tmp_path, run_validation=True)
    train, held_out = await load_samples(asked, CONTEXT)
    assert (len(train), len(held_out)) == (18, 2)
    names = {thread.get_turns()[0].content for thread in train + held_out}
    assert names == {str(n) for n in range(20)}
    again = await load_samples(asked, CONTEXT)
    assert [thread.get_turns() for thread in again[1]] == [thread.get_turns() for thread in held_out]
    assert [thread.get_turns() for thread in again[0]] == [thread.get_turns() for thread in train]


async def test_a_validation_set_of_its_own_keeps_all_samples(tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", 3)
    train, held_out = await load_samples(config(tmp_path, validation_dataset=str(other)), CONTEXT)
    assert (len(train), len(held_out)) == (20, 3)
    train, held_out = await load_samples(config(tmp_path), CONTEXT)
    assert (len(train), len(held_out)) == (20, 0)


async def test_one_sample_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="leaves none to train on"):
        await load_samples(config(tmp_path, 1, run_validation=True), CONTEXT)


def test_metrics_are_logged_by_their_documented_names(capsys: pytest.CaptureFixture[str]) -> None:
    logger = RenamingLogger(StdoutLogger(), {"loss": "train/loss"})
    logger({"loss": 2.0, "lr": 0.5})
    assert "train/loss 2" in capsys.readouterr().out
    other = RenamingLogger(StdoutLogger(), {})
    other.set_state(logger.get_state())
    assert other.get_state() == logger.get_state() != RenamingLogger(StdoutLogger(), {}).get_state()
