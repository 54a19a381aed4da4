"""`python -m harmonia.client.recipe.probe FOLDER ENTRYPOINT CACHE RESULT`: what a recipe takes as its input.

A server asks in a process of its own, since a recipe is imported for it, and with limits, since nobody has read it. The
standard input may hold a JSON object: then it is validated as the recipe's input, too. RESULT gets a `ProbeResult`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import msgspec

from harmonia.client.recipe.config import InputConfig
from harmonia.client.recipe.dependencies import use_dependencies
from harmonia.client.recipe.failures import recipe_traceback
from harmonia.client.recipe.inputs import keys_of, validate_input
from harmonia.client.recipe.loading import Recipe, load_recipe
from harmonia.errors import HarmoniaError, InvalidRequestError

CPU_S = 60
"""Processor time that importing a recipe may take."""
MEMORY_BYTES = 4 << 30
"""Memory that a recipe may ask for while it is imported."""
FILE_BYTES = 16 << 20
"""Largest file that it may write meanwhile."""
NO_INPUT: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
"""The schema of a recipe without an input."""


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was found: a schema, or why there is none."""

    schema: dict[str, Any] = {}
    """JSON schema of the input, with `properties` and `required` at the top."""
    models: dict[str, str] = {}
    """Keys of the models in the input, by the fields that hold them."""
    datasets: dict[str, str] = {}
    """Those of its data sets."""
    graders: dict[str, str] = {}
    """Those of its graders."""
    error: str | None = None
    """What is wrong with the recipe or the input."""
    field: str | None = None
    """The field of the input that is wrong."""


def input_schema(recipe: Recipe) -> dict[str, Any]:
    """The JSON schema of a recipe's input, self-contained, with `properties` and `required` at the top.

    Forms get what they need of each property at its place: its type, not a reference; a description; and `oneOf`, not
    `anyOf`, where it may be null.
    """
    if recipe.config_class is None:
        return NO_INPUT
    schema = recipe.config_class.model_json_schema()
    definitions = schema.get("$defs", {})
    if "$ref" in schema:  # a config that holds itself
        schema = {**_resolved(schema, definitions), "$defs": definitions}
    properties = {
        name: _described(name, _resolved(each, definitions)) for name, each in schema.get("properties", {}).items()
    }
    return {**schema, "type": "object", "properties": properties, "required": schema.get("required", [])}


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A schema with the definition that it refers to in its place; what it says besides counts more."""
    if "$ref" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {**definitions[schema["$ref"].rpartition("/")[2]], **rest}


def _described(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf", [])
    if len(options) == 2 and {"type": "null"} in options:
        schema = {("oneOf" if key == "anyOf" else key): value for key, value in schema.items()}
    return {**schema, "description": schema.get("description") or schema.get("title") or name}


def probe(folder: Path, entrypoint: str, given: bytes) -> ProbeResult:
    """Import a recipe and validate an input, if there is one."""
    try:
        recipe = load_recipe(folder, entrypoint)
        config = _check(recipe, msgspec.json.decode(given, type=dict[str, Any])) if given else None
        models, datasets, graders = (
            {} if config is None else keys_of(config, kind) for kind in ("model", "dataset", "grader")
        )
        return ProbeResult(schema=input_schema(recipe), models=models, datasets=datasets, graders=graders)
    except HarmoniaError as error:
        field = error.details.get("field")
        return ProbeResult(error=error.message, field=None if field is None else str(field))
    except Exception as error:  # noqa: BLE001 - the recipe's own, of whatever kind
        return ProbeResult(error=f"the recipe cannot be imported:\n{recipe_traceback(error)}")


def _check(recipe: Recipe, given: dict[str, Any]) -> InputConfig | None:
    """The config of a valid input; None of a recipe that takes none."""
    if recipe.config_class is not None:
        return validate_input(recipe.config_class, given)
    if given:
        field = next(iter(given))
        raise InvalidRequestError(f"{field}: there is no such field; the recipe takes no input", field=field)
    return None


def _limit() -> None:
    limits = {
        resource.RLIMIT_CPU: CPU_S,
        resource.RLIMIT_DATA: MEMORY_BYTES,  # not the address space, of which libraries map far more than they use
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def main(folder: str, entrypoint: str, cache: str, result: str) -> None:
    """Write what `probe` found, with the folder's path left out of its words."""
    given = sys.stdin.buffer.read()
    try:
        use_dependencies(folder, entrypoint, Path(cache))
        _limit()
        found = probe(Path(folder), entrypoint, given)
    except HarmoniaError as error:  # of the dependencies
        found = ProbeResult(error=error.message)
    if found.error is not None:
        found = msgspec.structs.replace(found, error=found.error.replace(f"{Path(folder).resolve()}/", ""))
    Path(result).write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
