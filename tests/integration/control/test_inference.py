"""Asking the models of a project: the published SDK and OpenAI's client, with a tiny real model behind them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client import (
    AddExternalModelInput,
    AddModelInput,
    AnthropicProviderDataInput,
    ExternalModelProviderName,
    ModelProviderDataInput,
    OpenAIProviderDataInput,
)
from openai import OpenAI

from harmonia.config.control import ControlConfig
from tests.integration.control.conftest import Plane

PROJECT = "tickets"
MESSAGES = [{"role": "user", "content": "Tell me something."}]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    config = ControlConfig(data_dir=tmp_path_factory.mktemp("plane"), external_models={"allow_private": True})
    with Plane(config) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(
    plane: Plane, tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adaptive]:
    """The admin of a project with a default model and an adapter beside it."""
    client = Adaptive(base_url=plane.url, api_key=plane.api_key)
    client.projects.create(PROJECT, "Tickets")
    client.set_default_project(PROJECT)
    adapter = shutil.copytree(tiny_adapters[0], tmp_path_factory.mktemp("named") / "adapter")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tiny)}))
    for path, key in ((tiny, "tiny"), (adapter, "support")):
        client._gql_client.add_model(AddModelInput(path=str(path), name=key, key=key))
        client.models.deploy(key, wait=True)
    client.models.update("tiny", is_default=True)
    yield client
    client.close()


@pytest.fixture(scope="module")
def client(plane: Plane, sdk: Adaptive) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{plane.url}/api/v1", api_key=plane.api_key, max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(plane: Plane, sdk: Adaptive) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {plane.api_key}"}
    with httpx.Client(base_url=plane.url, headers=headers, timeout=60) as opened:
        yield opened


def test_the_sdk_gets_whole_answers_and_streams(sdk: Adaptive) -> None:
    session = uuid.uuid4()
    whole = sdk.chat.create(messages=MESSAGES, model="tiny", session_id=session, **GREEDY)
    assert whole.session_id == session
    assert whole.choices[0].model == "tickets/tiny"
    chunks = list(sdk.chat.create(messages=MESSAGES, model="tiny", stream=True, stream_include_usage=True, **GREEDY))
    text = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.choices[0].completion_id for chunk in chunks if chunk.choices}) == 1


def test_the_project_alone_names_its_default_model(client: OpenAI) -> None:
    default = client.chat.completions.create(model=PROJECT, messages=MESSAGES, **GREEDY)
    named = client.chat.completions.create(model="tickets/tiny", messages=MESSAGES, **GREEDY)
    adapted = client.chat.completions.create(model="tickets/support", messages=MESSAGES, **GREEDY)
    assert default.model == "tickets/tiny"
    assert default.choices[0].message.content == named.choices[0].message.content
    assert adapted.choices[0].message.content != named.choices[0].message.content


def test_openai_streams_from_both_addresses(plane: Plane, client: OpenAI) -> None:
    whole = client.chat.completions.create(model=PROJECT, messages=MESSAGES, **GREEDY)
    with OpenAI(base_url=f"{plane.url}/v1", api_key=plane.api_key, max_retries=0) as short:
        chunks = list(short.chat.completions.create(model=PROJECT, messages=MESSAGES, stream=True, **GREEDY))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content


def test_models_that_may_be_asked_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tickets/support", "tickets/tiny"]


def test_completions_and_embeddings(client: OpenAI) -> None:
    batch = client.completions.create(model=PROJECT, prompt=["ab", "cd"], **GREEDY)
    single = client.completions.create(model="tickets/tiny", prompt="cd", **GREEDY)
    assert batch.choices[1].text == single.choices[0].text
    vectors = client.embeddings.create(model=PROJECT, input=["one", "two"]).data
    assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1.0, abs=1e-4)


def test_who_may_not_ask_is_told_apart(plane: Plane, sdk: Adaptive, http: httpx.Client) -> None:
    def status(model: str, key: str, **more: object) -> tuple[int, str]:
        body = {"model": model, "messages": MESSAGES, "max_tokens": 1, **more}
        answer = http.post("/api/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        return answer.status_code, answer.text

    sdk.teams.create("others", "Others")
    bot = sdk.users.create_service_account(name="bot", teams_with_role=[("others", "inference")]).api_key
    assert status(PROJECT, bot)[0] == 403
    assert status(PROJECT, "wrong")[0] == 401
    assert status("nowhere", plane.api_key)[0] == 404
    code, text = status("tickets/nothing", plane.api_key)
    assert (code, "nothing" in text) == (404, True)
    code, text = status(PROJECT, plane.api_key, session_id="monday")
    assert (code, "session_id" in text) == (400, True)
    code, text = status("tickets/tiny", plane.api_key, ab_campaign="first")
    assert (code, "not both" in text) == (400, True)
    sdk.projects.share(PROJECT, "others", "inference")
    assert status(PROJECT, bot)[0] == 200
    sdk.users.delete("bot@system.adaptive.local")
    assert status(PROJECT, bot)[0] == 401


def test_answers_are_kept_unless_they_shall_not_be(sdk: Adaptive) -> None:
    whole = sdk.chat.create(messages=MESSAGES, labels={"kind": "whole"}, **GREEDY)
    found = sdk.interactions.get(whole.choices[0].completion_id, PROJECT)
    assert found.completion == whole.choices[0].message.content
    assert found.chat_messages[0].content == MESSAGES[0]["content"]
    assert {label.key: label.value for label in found.labels} == {"kind": "whole"}
    assert found.metadata.usage.completion_tokens == whole.usage.completion_tokens
    chunks = list(sdk.chat.create(messages=MESSAGES, stream=True, labels={"kind": "stream"}, **GREEDY))
    streamed = sdk.interactions.get(chunks[0].choices[0].completion_id, PROJECT)
    assert streamed.completion == whole.choices[0].message.content
    silent = sdk.chat.create(messages=MESSAGES, store=False, **GREEDY)
    assert sdk.interactions.get(silent.choices[0].completion_id, PROJECT) is None


def test_an_ab_test_chooses_the_model(sdk: Adaptive, client: OpenAI) -> None:
    sdk.feedback.register_key(PROJECT, "stars", "scalar")
    sdk.ab_tests.create("which", "stars", ["tiny", "support"], traffic_split=1.0)
    answers = [client.chat.completions.create(model=PROJECT, messages=MESSAGES, max_tokens=1) for _ in range(12)]
    assert {answer.model for answer in answers} == {"tickets/tiny", "tickets/support"}
    sdk.ab_tests.cancel("which")
    assert client.chat.completions.create(model=PROJECT, messages=MESSAGES, max_tokens=1).model == "tickets/tiny"
    with pytest.raises(openai.NotFoundError, match="moon"):
        client.chat.completions.create(model=PROJECT, messages=MESSAGES, extra_body={"ab_campaign": "moon"})


def test_the_winner_of_an_ab_test_becomes_the_default(sdk: Adaptive, client: OpenAI) -> None:
    sdk.feedback.register_key(PROJECT, "solved", "bool")
    sdk.ab_tests.create("solving", "solved", ["tiny", "support"], traffic_split=0.5, auto_deploy=True)

    def asked(**more: object) -> tuple[str, str]:
        answer = client.chat.completions.create(model=PROJECT, messages=MESSAGES, max_tokens=1, extra_body=more)
        return answer.model, answer.choices[0].completion_id

    outside = client.chat.completions.create(model="tickets/tiny", messages=MESSAGES, max_tokens=1)
    sdk.feedback.log_metric(False, outside.choices[0].completion_id, "solved")
    assert sdk.ab_tests.get("solving").scores == 0, "whoever names a model takes no part"
    for number in range(500):
        if number % 10 == 0 and sdk.ab_tests.get("solving").status.value == "DONE":
            break
        model, completion = asked(ab_campaign="solving")
        sdk.feedback.log_metric(model == "tickets/support", completion, "solved")
    ended = sdk.ab_tests.get("solving")
    assert (ended.status.value, ended.has_enough_scores) == ("DONE", True)
    assert ended.report.p_value < 0.05
    assert {asked()[0] for _ in range(4)} == {"tickets/support"}
    sdk.models.update("tiny", is_default=True)


def test_what_is_switched_off_answers_503(sdk: Adaptive, http: httpx.Client) -> None:
    sdk.models.update("support", desired_online=False)
    answer = http.post("/api/v1/chat/completions", json={"model": "tickets/support", "messages": MESSAGES})
    assert (answer.status_code, "switched off" in answer.text) == (503, True)
    sdk.models.deploy("support", wait=True)
    for _ in range(8):  # whether its worker has let go of it by now or not
        sdk.models.update("support", desired_online=False)
        sdk.models.deploy("support", wait=True)
        body = {"model": "tickets/support", "messages": MESSAGES, "max_tokens": 1}
        assert http.post("/api/v1/chat/completions", json=body).status_code == 200


def test_a_compute_config_changes_without_a_failed_request(sdk: Adaptive, plane: Plane, http: httpx.Client) -> None:
    sdk.models.update_compute_config("tiny", {"max_seq_len": 300})
    router, statuses = plane.services.serving.router, []
    end = time.monotonic() + 60
    while router.pick("tiny").description.max_seq_len != 300 or len(router.statuses()) > 1:
        body = {"model": "tickets/support", "messages": MESSAGES, "max_tokens": 40, "store": False}
        statuses.append(http.post("/api/v1/chat/completions", json=body).status_code)
        assert time.monotonic() < end
    assert set(statuses) == {200}


def test_a_worker_that_dies_answers_with_a_clear_error_and_comes_back(
    plane: Plane, sdk: Adaptive, client: OpenAI
) -> None:
    stream = client.chat.completions.create(
        model=PROJECT, messages=MESSAGES, stream=True, max_tokens=250, extra_body={"ignore_eos": True}
    )
    next(stream)
    os.kill(plane.services.serving.router.statuses()[0].pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="worker"):
        list(stream)
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(model=PROJECT, messages=MESSAGES, **GREEDY)
    assert error.value.status_code == 503
    assert sdk.models.deploy("support", wait=True).model.online.value == "ONLINE"
    assert client.chat.completions.create(model=PROJECT, messages=MESSAGES, **GREEDY).choices


def test_an_external_model_is_asked_like_our_own(plane: Plane, sdk: Adaptive, client: OpenAI) -> None:
    def register(name: str, key: str) -> None:
        data = OpenAIProviderDataInput(api_key=key, external_model_id="tickets/tiny", endpoint=f"{plane.url}/v1")
        provider_data = ModelProviderDataInput(open_ai=data)
        wanted = AddExternalModelInput(
            name=name, provider=ExternalModelProviderName.OPEN_AI, provider_data=provider_data
        )
        sdk._gql_client.add_external_model(wanted)
        sdk.models.deploy(name, wait=True)

    register("elsewhere", plane.api_key)
    ours = client.chat.completions.create(model="tickets/tiny", messages=MESSAGES, **GREEDY)
    theirs = client.chat.completions.create(model="tickets/elsewhere", messages=MESSAGES, **GREEDY)
    assert theirs.choices[0].message.content == ours.choices[0].message.content
    assert (theirs.usage.total_tokens, theirs.model) == (ours.usage.total_tokens, "tickets/elsewhere")
    chunks = list(sdk.chat.create(messages=MESSAGES, model="elsewhere", stream=True, **GREEDY))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ours.choices[0].message.content
    kept = sdk.interactions.get(chunks[0].choices[0].completion_id, PROJECT)
    assert (kept.model.key, kept.completion) == ("elsewhere", ours.choices[0].message.content)
    with pytest.raises(openai.BadRequestError, match="min_p"):
        client.chat.completions.create(model="tickets/elsewhere", messages=MESSAGES, extra_body={"min_p": 0.5})
    with pytest.raises(openai.BadRequestError, match="gives no vectors"):
        client.embeddings.create(model="tickets/elsewhere", input="one")
    data = AnthropicProviderDataInput(
        api_key=plane.api_key, external_model_id="tickets/tiny", endpoint=f"{plane.url}/v1"
    )
    sdk._gql_client.add_external_model(
        AddExternalModelInput(
            name="claude",
            provider=ExternalModelProviderName.ANTHROPIC,
            provider_data=ModelProviderDataInput(anthropic=data),
        )
    )
    sdk.models.deploy("claude", wait=True)
    theirs = client.chat.completions.create(model="tickets/claude", messages=MESSAGES, **GREEDY)
    assert theirs.choices[0].message.content == ours.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="seed: the provider of claude ignores it"):
        client.chat.completions.create(model="tickets/claude", messages=MESSAGES, seed=1)
    register("locked", "hk-very-secret")
    with pytest.raises(openai.InternalServerError, match="refuses the registered API key") as error:
        client.chat.completions.create(model="tickets/locked", messages=MESSAGES)
    assert "hk-very-secret" not in str(error.value)
