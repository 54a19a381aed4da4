"""System prompts that a project keeps for its models, as the models are asked with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from harmonia.config.control import ControlConfig
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.sdk import Adaptive
from harmonia.server.services.models.system_prompts import arguments_of, filled
from tests.integration.control.asking import data
from tests.integration.control.conftest import Plane, on_both
from tests.integration.control.test_judges import Provider

ASK = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def plane(tmp_path: Path, database_address: str) -> Iterator[Plane]:
    """One whose external models may be on this machine."""
    config = ControlConfig(data_dir=tmp_path, db={"url": database_address}, external_models={"allow_private": True})
    with Plane(config) as plane:
        yield plane


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    provider.answers = ["Hi"]
    yield provider
    provider.close()


@pytest.fixture
def sdk(plane: Plane, provider: Provider) -> Iterator[Adaptive]:
    """With a model whose requests can be looked at."""
    with Adaptive(plane.url, plane.api_key, "lab") as client:
        client.projects.create("lab")
        client.models.add_external("far", "far-1", "sk-secret", "open_ai", endpoint=provider.url)
        client.models.deploy("far", make_default=True)
        yield client


def asked(provider: Provider) -> list[dict[str, Any]]:
    """The chat that the model got last."""
    found: list[dict[str, Any]] = provider.asked[-1]["messages"]
    return found


@on_both
def test_chats_begin_with_it_whoever_asks(plane: Plane, sdk: Adaptive, provider: Provider) -> None:
    prompt = sdk.system_prompts.create("tone", "Be {{ mood }} in {{language}}, {{ mood }}!")
    assert (prompt.arguments, sdk.system_prompts.list()) == (["mood", "language"], [prompt])
    sdk.system_prompts.use("far", prompt.id)
    arguments = {"mood": "kind", "language": ["French", 2]}
    answer = sdk.chat.create(ASK, system_prompt_args=arguments)
    text = 'Be kind in ["French",2], kind!'
    assert asked(provider) == [{"role": "system", "content": text}, *ASK]
    # What was asked is kept as the model read it.
    kept = sdk.interactions.get(str(answer.choices[0].completion_id))
    assert kept is not None and [message.content for message in kept.chat_messages] == [text, "Hello"]
    own = [{"role": "system", "content": "Answer in one word."}, *ASK]
    with OpenAI(base_url=f"{plane.url}/v1", api_key=plane.api_key, max_retries=0) as client:
        extra = {"system_prompt_args": arguments}
        client.chat.completions.create(model="lab", messages=own, extra_body=extra)  # type: ignore[arg-type]
    assert asked(provider) == [{"role": "system", "content": f"{text}\n\nAnswer in one word."}, *ASK]
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *ASK]
    answer = sdk.chat.create(parts, system_prompt_args=arguments)
    assert asked(provider)[0]["content"] == f"{text}\n\nBe brief."
    kept = sdk.interactions.get(str(answer.choices[0].completion_id))
    assert kept is not None and len(kept.chat_messages) == 2
    for wrong, why in (
        ({}, "asks for 'mood'; give 'mood', 'language'"),
        ({"mood": "x", "language": "y", "else": 1}, "no place for 'else'"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            sdk.chat.create(ASK, system_prompt_args=wrong)


@on_both
def test_a_newer_version_is_another_one(plane: Plane, sdk: Adaptive, provider: Provider) -> None:
    first = sdk.system_prompts.create("tone", "Be kind.")
    sdk.system_prompts.use("far", first.id)
    second = sdk.system_prompts.create("tone", "Be short.")
    sdk.chat.create(ASK)
    assert asked(provider)[0]["content"] == "Be kind."
    sdk.system_prompts.use("far", second.id)
    sdk.chat.create(ASK)
    assert asked(provider)[0]["content"] == "Be short."
    shown = """{ project(idOrKey: "lab") { modelServices { systemPromptTemplate { id name arguments } } } }"""
    (service,) = data(plane, shown)["project"]["modelServices"]
    assert service["systemPromptTemplate"] == {"id": second.id, "name": "tone", "arguments": []}
    with pytest.raises(InvalidRequestError, match="'far' begins with it"):
        sdk.system_prompts.delete(second.id)
    assert sdk.system_prompts.delete(first.id)
    assert [prompt.id for prompt in sdk.system_prompts.list()] == [second.id]
    # Other changes leave it, and null takes it away.
    sdk.models.update("far", is_default=True)
    assert data(plane, shown)["project"]["modelServices"][0]["systemPromptTemplate"] is not None
    sdk.system_prompts.use("far", None)
    sdk.chat.create(ASK)
    assert asked(provider) == ASK
    with pytest.raises(InvalidRequestError, match="lab/far has no system prompt to fill"):
        sdk.chat.create(ASK, system_prompt_args={"mood": "kind"})
    assert sdk.system_prompts.delete(second.id)


def test_those_of_other_projects_are_not_there(sdk: Adaptive) -> None:
    sdk.projects.create("other")
    theirs = sdk.system_prompts.create("tone", "Be kind.", project="other")
    assert sdk.system_prompts.list() == []
    with pytest.raises(EntityNotFoundError):
        sdk.system_prompts.use("far", theirs.id)
    with pytest.raises(EntityNotFoundError):
        sdk.system_prompts.delete(theirs.id)
    # A model that comes back after it was taken out begins anew.
    own = sdk.system_prompts.create("tone", "Be kind.")
    sdk.system_prompts.use("far", own.id)
    sdk.models.detach("far")
    sdk.models.deploy("far")
    assert sdk.system_prompts.delete(own.id)


def test_what_is_no_template_is_refused(sdk: Adaptive) -> None:
    for template, why in (
        ("", "1 to 100000 characters"),
        ("x" * 100_001, "1 to 100000 characters"),
        ("Be {{ 1st }}.", r"write \{\{ name \}\}"),
        ("Be {{ kind", r"write \{\{ name \}\}"),
        ("Be {{ x.__class__ }}", r"write \{\{ name \}\}"),
        ("a\0b", "U[+]0000"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            sdk.system_prompts.create("tone", template)
    with pytest.raises(InvalidRequestError, match="name"):
        sdk.system_prompts.create(" ", "Be kind.")


def test_arguments_are_no_templates() -> None:
    template = 'As JSON: {"a": {"b": 1}} {{ a }} {{b}}'
    assert arguments_of(template) == ["a", "b"]
    assert filled(template, {"a": "{{ b }}", "b": r"\1 \g<0>"}) == r'As JSON: {"a": {"b": 1}} {{ b }} \1 \g<0>'
