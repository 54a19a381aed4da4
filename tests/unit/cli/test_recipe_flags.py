"""Flags of a recipe, as its configuration makes them."""

import io
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from rich.console import Console

from harmonia.cli.recipe_flags import flags_of, overlay, parse_flags, print_help
from harmonia.errors import InvalidRequestError


class Adam(BaseModel):
    union_variant: Literal["Adam"] = "Adam"
    lr: float = 1e-3
    amsgrad: bool = False


class Sgd(BaseModel):
    union_variant: Literal["Sgd"] = "Sgd"
    momentum: float


class Config(BaseModel):
    model: Annotated[str, Field(title="The model", description="A key of the registry.")]
    epochs: int = 1
    validate_often: bool = False
    max_grad_norm: float | None = 1.0
    tags: list[str] = []
    sizes: set[int] = {1}
    mode: Literal["fast", "good"] = "good"
    warmup: Adam = Adam(lr=0.5)
    optimizer: Annotated[Adam | Sgd, Field(discriminator="union_variant")] = Adam()
    options: dict[str, int] = {}
    either: int | str = 0


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ("", {}),
        ("--model m --epochs 3", {"model": "m", "epochs": 3}),
        ("--model=a=b", {"model": "a=b"}),
        ("--max-grad-norm 1e-2", {"max_grad_norm": 0.01}),
        ("--max_grad_norm -1", {"max_grad_norm": -1.0}),
        ("--max-grad-norm none", {"max_grad_norm": None}),
        ("--validate-often", {"validate_often": True}),
        ("--no-validate-often", {"validate_often": False}),
        ("--validate-often=false", {"validate_often": False}),
        ("--tags a --tags b", {"tags": ["a", "b"]}),
        ("--sizes 3", {"sizes": [3]}),
        ("--warmup.lr 2 --warmup.no-amsgrad", {"warmup": {"lr": 2.0, "amsgrad": False}}),
        ("--optimizer.union-variant Sgd", {"optimizer": {"union_variant": "Sgd"}}),
        ('--options {"a":1}', {"options": {"a": 1}}),
        ("--either 3", {"either": 3}),
        ("--either three", {"either": "three"}),
    ],
)
def test_flags_become_values(argv: str, values: dict[str, Any]) -> None:
    assert parse_flags(Config, argv.split()) == values


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("--xyz 3", "(without the `--`, `--help` shows the options of the command itself)"),
        ("--validate-often yes", "got 'yes'; give --validate-often or --no-validate-often"),
        ("--warmup.rl 3", "did you mean --warmup.lr?"),
        ("--no-epochs", "unknown flag --no-epochs"),
        ("m", "unexpected 'm'; parameters of a recipe are given as --name value"),
        ("--epochs", "--epochs wants a value: --epochs INTEGER"),
        ("--model --epochs 3", "--model wants a value"),
        ("--epochs many", "cannot read 'many': --epochs INTEGER"),
        ("--options a", "cannot read 'a': --options JSON"),
        ("--mode slow", "--mode wants one of fast, good, got 'slow'"),
        ("--epochs 1 --epochs 2", "--epochs is given twice"),
        ("--no-validate-often=1", "--no-validate-often takes no value"),
    ],
)
def test_what_is_wrong_is_named(argv: str, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_flags(Config, argv.split())
    assert says in caught.value.message


def test_a_recipe_without_a_configuration_takes_no_flags() -> None:
    assert parse_flags(None, []) == {}
    with pytest.raises(InvalidRequestError, match="this recipe takes no parameters"):
        parse_flags(None, ["--lr", "1"])


def test_flags_override_a_file_field_by_field() -> None:
    file = {"model": "a", "warmup": {"lr": 1.0, "amsgrad": True}, "tags": ["x"]}
    flags = {"model": "b", "warmup": {"lr": 2.0}, "tags": ["y"]}
    assert overlay(file, flags) == {"model": "b", "warmup": {"lr": 2.0, "amsgrad": True}, "tags": ["y"]}


def test_help_lists_every_flag_with_its_type_default_and_description() -> None:
    stream = io.StringIO()
    print_help(Console(file=stream, width=120), "lesson.py", "Teaches.", Config)
    text = stream.getvalue()
    assert all(f"--{flag.name}" in text for flag in flags_of(Config))
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("--")}
    assert "TEXT" in lines["--model"] and "A key of the registry required" in lines["--model"]
    assert "fast|good" in lines["--mode"] and '"good"' in lines["--mode"]
    assert "--validate-often / --no-validate-often" in text
    assert "[0.5]" in lines["--warmup.lr"] and "--tags TEXT (repeat for more)" in lines["--tags"]
    assert "harmonia run lesson.py --model ..." in text


class Node(BaseModel):
    name: str = "root"
    below: "Node | None" = None


def test_a_configuration_may_hold_itself() -> None:
    assert parse_flags(Node, ["--name", "a", "--below.name", "b"]) == {"name": "a", "below": {"name": "b"}}
