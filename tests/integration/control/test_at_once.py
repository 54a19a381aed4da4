"""What several people do at the same moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.integration.control.asking import ask, data, make_project
from tests.integration.control.conftest import Plane, on_both

MODEL = {"name": "far", "provider": "OPEN_AI", "providerData": {"openAI": {"apiKey": "secret", "externalModelId": "x"}}}
ADD = "mutation ($input: AddExternalModelInput!) { addExternalModel(input: $input) { id } }"
DEPLOY = 'mutation { deployModel(input: {project: "lab", model: "far", wait: false}) { warnings } }'
DELETE = 'mutation { deleteModel(input: {model: "far"}) }'
UPLOAD = """mutation ($name: String!, $file: Upload!) {
  createCustomRecipe(project: "lab", input: {name: $name}, file: $file) { key } }"""
RECIPE = """
from harmonia.client.recipe import RecipeContext, recipe_main

@recipe_main
async def main(ctx: RecipeContext) -> None:
    pass
"""
CALLERS = 6


def at_once(*calls: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


@on_both
def test_a_model_is_deployed_several_times(plane: Plane) -> None:
    make_project(plane, "lab")
    data(plane, ADD, {"input": MODEL})
    answers = at_once(*[lambda: ask(plane, DEPLOY)] * CALLERS)
    assert not [answer["errors"] for answer in answers if answer.get("errors")]


@on_both
def test_a_deleted_model_is_deployed_nowhere(plane: Plane) -> None:
    make_project(plane, "lab")
    for _ in range(5):
        data(plane, ADD, {"input": MODEL})
        at_once(*[lambda: ask(plane, DEPLOY), lambda: ask(plane, DELETE)] * 3)
        services = data(plane, '{ project(idOrKey: "lab") { modelServices { model { key } } } }')
        if services["project"]["modelServices"]:
            assert services["project"]["modelServices"] == [{"model": {"key": "far"}}]
            data(plane, 'mutation { terminateModel(idOrKey: "far") }')
            data(plane, DELETE)


@on_both
def test_the_same_code_is_uploaded_under_several_names(plane: Plane) -> None:
    make_project(plane, "lab")

    def upload(name: str) -> dict[str, Any]:
        operations = json.dumps({"query": UPLOAD, "variables": {"name": name, "file": None}})
        form = {"operations": operations, "map": '{"0": ["variables.file"]}'}
        answer = httpx.post(
            f"{plane.url}/api/graphql",
            data=form,
            files={"0": ("lesson.py", RECIPE.encode())},
            headers={"authorization": f"Bearer {plane.api_key}"},
            timeout=60,
        )
        told: dict[str, Any] = answer.json()
        return told

    answers = at_once(*[lambda name=f"lesson-{number}": upload(name) for number in range(CALLERS)])  # type: ignore[misc]
    assert not [answer["errors"] for answer in answers if answer.get("errors")]
