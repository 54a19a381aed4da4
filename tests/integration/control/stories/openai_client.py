"""What OpenAI's client can do with the models of a project: ask, stream, complete, embed, list, and be refused."""

from __future__ import annotations

import json
from typing import Any, cast

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from harmonia.sdk import Adaptive
from tests.integration.control.stories.scene import MESSAGES, MODEL, Scene

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


class Colour(BaseModel):
    """What an answer may be made to look like."""

    blue: bool


def tell(client: OpenAI, scene: Scene) -> None:
    """The whole story. client: either, `Surface.of` makes them alike."""
    with Adaptive(scene.url, scene.api_key) as sdk:
        sdk.projects.create(scene.name)
        sdk.set_default_project(scene.name)
        sdk.models.deploy(MODEL, wait=True, make_default=True)
        listing(client, scene)
        answers(client, scene)
        forms(client, scene)
        completions(client, scene)
        embeddings(client, scene)
        interactions(client, sdk, scene)
        refusals(client, sdk, scene)
        switched_off(client, sdk, scene)
        sdk.models.detach(MODEL)


def listing(client: OpenAI, scene: Scene) -> None:
    assert f"{scene.name}/{MODEL}" in [model.id for model in client.models.list()]
    assert client.models.retrieve(f"{scene.name}/{MODEL}").owned_by == "harmonia"
    with pytest.raises(openai.NotFoundError, match="nothing"):
        client.models.retrieve(f"{scene.name}/nothing")


def answers(client: OpenAI, scene: Scene) -> None:
    whole = client.chat.completions.create(model=scene.name, messages=MESSAGES, **GREEDY)
    assert (whole.model, len(whole.choices)) == (f"{scene.name}/{MODEL}", 1)
    chunks = list(
        client.chat.completions.create(
            model=scene.name, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    several = client.chat.completions.create(model=scene.name, messages=MESSAGES, n=3, seed=5, max_tokens=16)
    assert len({choice.message.content for choice in several.choices}) == 3
    scored = client.chat.completions.create(
        model=scene.name, messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY
    )
    assert scored.choices[0].logprobs is not None and scored.usage is not None
    assert len(scored.choices[0].logprobs.content or []) == scored.usage.completion_tokens


def forms(client: OpenAI, scene: Scene) -> None:
    """Answers of a shape, and calls of tools."""
    parsed = client.chat.completions.parse(
        model=scene.name, messages=MESSAGES, response_format=Colour, max_tokens=60, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Colour)
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    function = {"name": "light", "parameters": {**parameters, "additionalProperties": False}}
    request: dict[str, Any] = {
        "model": scene.name,
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "max_tokens": 120,
        "seed": 2,
    }
    choice = client.chat.completions.create(**request).choices[0]
    (call,) = choice.message.tool_calls or []
    assert (call.type, choice.finish_reason) == ("function", "tool_calls")
    assert call.type == "function" and isinstance(json.loads(call.function.arguments)["on"], bool)
    pieces = [
        piece
        for chunk in client.chat.completions.create(stream=True, **request)
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or []
    ]
    told = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert told == call.function.arguments


def completions(client: OpenAI, scene: Scene) -> None:
    batch = client.completions.create(model=scene.name, prompt=["ab", "cd"], **GREEDY)
    pieces = client.completions.create(model=f"{scene.name}/{MODEL}", prompt="cd", stream=True, **GREEDY)
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == batch.choices[1].text


def embeddings(client: OpenAI, scene: Scene) -> None:
    vectors = [item.embedding for item in client.embeddings.create(model=scene.name, input=["one", "two"]).data]
    assert [sum(x * x for x in vector) for vector in vectors] == [pytest.approx(1, abs=1e-3)] * 2
    plain = client.embeddings.create(model=scene.name, input="one", encoding_format="float").data[0].embedding
    assert plain == pytest.approx(vectors[0], abs=1e-5)


def interactions(client: OpenAI, sdk: Adaptive, scene: Scene) -> None:
    """What is asked this way is kept like everything else."""
    more = {"labels": {"by": "openai"}}
    answer = client.chat.completions.create(model=scene.name, messages=MESSAGES, extra_body=more, **GREEDY)
    kept = sdk.interactions.get(cast(Any, answer.choices[0]).completion_id)
    assert kept is not None
    assert kept.completion == answer.choices[0].message.content
    assert [(label.key, label.value) for label in kept.labels] == [("by", "openai")]


def refusals(client: OpenAI, sdk: Adaptive, scene: Scene) -> None:
    create = client.chat.completions.create
    for model, named in (("nowhere", "nowhere"), (f"{scene.name}/nothing", "nothing")):
        with pytest.raises(openai.NotFoundError, match=named):
            create(model=model, messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        create(model=scene.name, messages=MESSAGES, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="temprature"):
        create(model=scene.name, messages=MESSAGES, extra_body={"temprature": 1})
    with pytest.raises(openai.BadRequestError, match="messages"):
        create(model=scene.name, messages=[])
    with pytest.raises(openai.BadRequestError, match="512"):
        create(model=scene.name, messages=[{"role": "user", "content": "x" * 600}])
    with pytest.raises(openai.NotFoundError, match="nothing"):
        create(model=f"{scene.name}/nothing", messages=MESSAGES, stream=True)
    team, role = sdk.teams.create(f"{scene.name}-readers"), sdk.roles.create(f"{scene.name}-reads", ["project:read"])
    sdk.projects.share(scene.name, team.key, role.key)
    bot = sdk.users.create_service_account(f"{scene.name}-bot", [(team.key, role.key)])
    for key, error in (("hk-wrong", openai.AuthenticationError), (bot.generated_api_key, openai.PermissionDeniedError)):
        with OpenAI(base_url=f"{scene.url}/v1", api_key=key or "", max_retries=0) as stranger, pytest.raises(error):
            stranger.chat.completions.create(model=scene.name, messages=MESSAGES)


def switched_off(client: OpenAI, sdk: Adaptive, scene: Scene) -> None:
    sdk.models.update(MODEL, desired_online=False)
    with pytest.raises(openai.InternalServerError, match="switched off") as error:
        client.chat.completions.create(model=scene.name, messages=MESSAGES)
    assert error.value.status_code == 503
