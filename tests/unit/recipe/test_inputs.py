"""Input that does not fit, and configs that name what is not there."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from harmonia.client.recipe import InputConfig, RecipeConfig, RecipeContext, check_config, validate_input
from harmonia.client.recipe.inputs import read_input
from harmonia.errors import InvalidRequestError, UnknownModelError, WorkerLostError


class Named(BaseModel):
    """A parameter that is there unless its key says otherwise."""

    key: str

    async def check(self, ctx: RecipeContext) -> None:
        if self.key == "lost":
            raise WorkerLostError("the worker is gone")
        if self.key.startswith("bad"):
            raise UnknownModelError(f"no model '{self.key}' in {ctx.config.harmony_url}")


class Judge(InputConfig):
    model: Named


class Config(InputConfig):
    model: Named = Named(key="good")
    steps: Annotated[int, Field(gt=0)] = 3
    judges: list[Judge] = Field(default_factory=list)
    by_name: dict[str, Named] = Field(default_factory=dict)
    pair: tuple[Named, int] | None = None
    check: int = 0


class Small(InputConfig):
    size: int


class Large(InputConfig):
    size: int


class Choice(InputConfig):
    what: Small | Large


@pytest.mark.parametrize(
    ("config", "given", "says"),
    [
        (Config, {"steps": "many"}, "steps: Input should be a valid integer.*, got 'many'"),
        (Config, {"steps": 0}, "steps: Input should be greater than 0, got 0"),
        (Config, {"stepz": 1}, "stepz: there is no such field; did you mean 'steps'"),
        (Config, {"judges": [{"model": {"key": "m"}}, {}]}, r"judges\[1\].model: missing; give it a value"),
        (Config, {"model": {"key": "x" * 500}, "steps": None}, "got None"),
        (Config, {"steps": "x" * 500}, r"got 'x{79}\.\.\.$"),
        (Choice, {"what": {"size": 3}}, "what: .*name the class of the config in 'union_variant'"),
        (Choice, {"what": {"union_variant": "Huge", "size": 3}}, "'Small', 'Large'"),
    ],
)
def test_fields_that_do_not_fit_are_named(config: type[InputConfig], given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        validate_input(config, given)
    assert caught.value.details["field"]


def test_all_bad_fields_are_named_at_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_input(Config, {"steps": -1, "judges": 3})
    assert caught.value.details["fields"] == ["steps", "judges"]
    assert len(caught.value.message.splitlines()) == 3


async def test_everything_that_is_not_there_is_named_at_once(ctx: RecipeContext) -> None:
    await check_config(Config(), ctx)
    config = Config(
        model=Named(key="bad1"),
        judges=[Judge(model=Named(key="good")), Judge(model=Named(key="bad2"))],
        by_name={"a": Named(key="bad3")},
        pair=(Named(key="bad4"), 3),
    )
    with pytest.raises(InvalidRequestError) as caught:
        await check_config(config, ctx)
    lines = caught.value.message.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["model", "judges[1].model", "by_name['a']", "pair[0]"]
    assert lines[0] == f"model: no model 'bad1' in {ctx.config.harmony_url}"


async def test_other_troubles_are_not_the_configs(ctx: RecipeContext) -> None:
    with pytest.raises(WorkerLostError):
        await check_config(Config(model=Named(key="lost")), ctx)


def test_input_of_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RecipeConfig(harmony_url="ws://x:1")
    monkeypatch.delenv("USER_INPUT_JSON", raising=False)
    assert read_input(config) == {}
    monkeypatch.setenv("USER_INPUT_JSON", '{"steps": 4}')
    assert read_input(config) == {"steps": 4}
    file = tmp_path / "input.json"
    file.write_text('{"steps": 5}', encoding="utf-8")
    config.user_input_file = str(file)
    assert read_input(config) == {"steps": 5}


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "must be a JSON object, not"), ("{", "is no JSON: "), (None, "cannot be read: ")]
)
def test_bad_input_of_a_launch(text: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=says):
        read_input(RecipeConfig(harmony_url="ws://x:1", user_input_file=str(file)))
