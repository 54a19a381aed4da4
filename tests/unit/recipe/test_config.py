"""Inputs of recipes and the settings of a launch."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from harmonia.client.recipe import InputConfig, RecipeConfigCli, RunnerArgs


class Adam(InputConfig):
    beta: float = 0.9


class Sgd(InputConfig):
    momentum: float = 0.0


class Training(InputConfig):
    optimizer: Adam | Sgd = Adam()
    others: list[Annotated[Adam | Sgd, Field(description="more of them")]] = Field(default_factory=list)
    maybe: Adam | Sgd | None = None
    single: Adam | None = None
    plain: int | str = 1


def test_variant_decides_between_configs() -> None:
    config = Training.model_validate(
        {
            "optimizer": {"union_variant": "Sgd", "momentum": 0.5},
            "others": [{"union_variant": "Adam"}],
            "maybe": {"union_variant": "Sgd"},
            "single": {"beta": 0.5},
        }
    )
    assert isinstance(config.optimizer, Sgd) and config.optimizer.momentum == 0.5
    assert [type(other) for other in config.others] == [Adam]
    assert isinstance(config.maybe, Sgd) and config.single == Adam(beta=0.5)
    assert config.union_variant == "Training"
    assert Training.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("bad", [{"optimizer": {}}, {"others": [{"beta": 1}]}, {"maybe": {}}, {"single": {"b": 1}}])
def test_variant_is_needed_in_unions_only(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Training.model_validate(bad)
    assert Training.model_validate({"single": {}, "maybe": None, "plain": "x"}).single == Adam()


def test_variant_belongs_to_the_class_itself() -> None:
    class Child(Adam):
        pass

    assert (Adam().union_variant, Child().union_variant) == ("Adam", "Child")
    with pytest.raises(ValidationError):
        Adam.model_validate({"union_variant": "Child"})


def test_classes_that_come_later_and_classes_built_again() -> None:
    class Early(InputConfig):
        nested: "Adam | Late"

    class Late(InputConfig):
        pass

    for _ in range(2):
        Early.model_rebuild(force=True)
        assert isinstance(Early.model_validate({"nested": {"union_variant": "Late"}}).nested, Late)
        with pytest.raises(ValidationError, match="union_variant"):
            Early.model_validate({"nested": {}})


def test_schema_tells_the_variants() -> None:
    schema = Training.model_json_schema()
    assert schema["properties"]["optimizer"]["discriminator"]["propertyName"] == "union_variant"
    assert schema["properties"]["others"]["items"]["description"] == "more of them"


def test_config_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"optimizer": {"union_variant": "Sgd", "momentum": 0.25}}', encoding="utf-8")
    assert Training.load_from_file(file).optimizer == Sgd(momentum=0.25)


def test_launch_by_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py", "--harmony-url", "ws://h:1", "--num-gpus", "2"])
    monkeypatch.setenv("ADAPTIVE_JOB_ID", "j7")
    monkeypatch.setenv("ADAPTIVE_NUM_GPUS", "8")
    config = RecipeConfigCli()
    assert (config.harmony_url, config.num_gpus, config.job_id, config.project) == ("ws://h:1", 2, "j7", None)
    monkeypatch.setattr("sys.argv", ["runner", "--harmony-url", "ws://h:1", "--recipe-key", "sft"])
    args = RunnerArgs()
    assert (args.recipe_key, args.entrypoint, args.job_id) == ("sft", "main.py", "j7")


def test_launch_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(ValidationError, match="harmony_url"):
        RecipeConfigCli()
