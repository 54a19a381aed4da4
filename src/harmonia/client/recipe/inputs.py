"""A recipe's input: read, validated, and checked against what there is before anything is loaded."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harmonia.client.recipe.config import InputConfig, RecipeConfig
from harmonia.client.recipe.context import RecipeContext
from harmonia.errors import InvalidRequestError

_LONGEST_VALUE = 80


class Checkable(Protocol):
    """A value in a config that can tell, before it is used, whether it will work: models, datasets, graders."""

    async def check(self, ctx: RecipeContext) -> None:
        """InvalidRequestError if it will not."""


def read_input(config: RecipeConfig) -> dict[str, Any]:
    """The input that was given to a launched recipe: the file of `user_input_file`, else USER_INPUT_JSON, else {}."""
    if config.user_input_file:
        where, text = config.user_input_file, _read(Path(config.user_input_file))
    else:
        where, text = "USER_INPUT_JSON", os.environ.get("USER_INPUT_JSON") or "{}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"the recipe's input in {where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the recipe's input in {where} must be a JSON object, not {_shown(value)}")
    return value


def validate_input(config_class: type[InputConfig], user_input: Mapping[str, Any]) -> InputConfig:
    """The config of an input. InvalidRequestError names every field that is wrong, its value, and what is expected."""
    try:
        return config_class.model_validate(dict(user_input))
    except ValidationError as error:
        problems = [_problem(detail, config_class) for detail in error.errors(include_url=False)]
        fields = [_place(detail["loc"]) for detail in error.errors(include_url=False)]
        raise InvalidRequestError(
            "\n".join([f"the input does not fit {config_class.__name__}:", *problems]), field=fields[0], fields=fields
        ) from error


async def check_config(config: InputConfig, ctx: RecipeContext) -> None:
    """Await `check(ctx)` of every value in the config that has it; one InvalidRequestError for all that fail."""
    failures = []
    for place, value in _checkables("", config):
        try:
            await value.check(ctx)
        except InvalidRequestError as error:
            failures.append((place, error))
    if failures:
        lines = [f"{place}: {error.message}" for place, error in failures]
        fields = [place for place, _ in failures]
        raise InvalidRequestError("\n".join(lines), field=fields[0], fields=fields) from failures[0][1]


def keys_of(config: InputConfig, kind: str) -> dict[str, str]:
    """The keys of the models, data sets or graders in a config, by their places.

    kind: `model`, `dataset` or `grader`; such a thing is what can be checked and has a `model_key`, and so on.
    """
    keys = {place: getattr(value, f"{kind}_key", None) for place, value in _checkables("", config)}
    return {place: key for place, key in keys.items() if isinstance(key, str)}


def _checkables(place: str, value: object) -> Iterator[tuple[str, Checkable]]:
    """The values with a `check`, each with its place, such as `judges[0].model`."""
    if inspect.iscoroutinefunction(getattr(type(value), "check", None)):
        yield place or "the input", value  # type: ignore[misc]  # that is what was just asked
    for inner, item in _items(place, value):
        yield from _checkables(inner, item)


def _items(place: str, value: object) -> Iterator[tuple[str, object]]:
    match value:
        case BaseModel():
            for name in type(value).model_fields:
                yield f"{place}.{name}".lstrip("."), getattr(value, name)
        case Mapping():
            for key, item in value.items():
                yield f"{place}[{key!r}]", item
        case list() | tuple() | set() | frozenset():
            for number, item in enumerate(value):
                yield f"{place}[{number}]", item


def _problem(detail: ErrorDetails, config_class: type[InputConfig]) -> str:
    place, kind = _place(detail["loc"]), detail["type"]
    if kind == "extra_forbidden":
        known = config_class.model_fields if len(detail["loc"]) == 1 else ()
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, 1)
        return f"  {place}: there is no such field" + (f"; did you mean '{near[0]}'?" if near else "")
    if kind == "missing":
        return f"  {place}: missing; give it a value"
    if kind == "union_tag_not_found":
        return f"  {place}: {detail['msg']}; name the class of the config in 'union_variant'"
    return f"  {place}: {detail['msg']}, got {_shown(detail['input'])}"


def _place(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "the input"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"user_input_file {str(file)!r} cannot be read: {error}") from error
