"""Our own client where models are asked and judged: a tiny real model answers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from harmonia.config.control import ControlConfig
from harmonia.errors import (
    HarmoniaError,
    InvalidRequestError,
)
from harmonia.sdk import Adaptive, AsyncAdaptive
from harmonia.sdk.inputs import InteractionFilter
from harmonia.sdk.operations.graders import RemoteEnvTestOffline
from harmonia.sdk.operations.integrations import WebhookConfig
from tests.integration.control.conftest import Plane

PROJECT = "tickets"
MESSAGES = [{"role": "user", "content": "Tell me something."}]


class Mood(BaseModel):
    """What an answer may be made to look like."""

    happy: bool


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(ControlConfig(data_dir=tmp_path_factory.mktemp("plane"))) as plane:
        yield plane


@pytest.fixture(scope="module")
def sdk(running: Plane, tiny: Path) -> Iterator[Adaptive]:
    """The admin of a project whose default model is deployed."""
    with Adaptive(base_url=running.url, api_key=running.api_key, default_project=PROJECT) as client:
        client.projects.create(PROJECT)
        client.models.add(str(tiny), "Tiny", "tiny")
        client.models.attach("tiny", wait=True, make_default=True)
        yield client


async def test_chat_whole_and_in_pieces_in_both_clients(running: Plane, sdk: Adaptive) -> None:
    whole = sdk.chat.create(MESSAGES, temperature=0, max_tokens=12)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage is not None
    assert uuid.UUID(whole.session_id)
    with sdk.chat.create(MESSAGES, "tiny", stream=True, temperature=0, max_tokens=12) as stream:
        assert "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices) == text
    async with AsyncAdaptive(running.url, running.api_key, PROJECT) as client:
        assert (await client.chat.create(MESSAGES, temperature=0, max_tokens=12)).choices[0].message.content == text
        options = {"include_usage": True}
        async with await client.chat.create(
            MESSAGES, stream=True, temperature=0, max_tokens=12, stream_options=options
        ) as pieces:
            chunks = [chunk async for chunk in pieces]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        with pytest.raises(InvalidRequestError, match="nothing"):
            await client.chat.create(MESSAGES, "nothing", stream=True)


def test_answers_of_a_shape_completions_and_embeddings(sdk: Adaptive) -> None:
    answer = sdk.chat.create(MESSAGES, response_format=Mood, max_tokens=40, temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" or Mood.model_validate_json(choice.message.content or "")
    continued = sdk.completions.create("Once", max_tokens=5, temperature=0)
    with sdk.completions.create("Once", max_tokens=5, temperature=0, stream=True) as stream:
        assert "".join(choice.text for piece in stream for choice in piece.choices) == continued.choices[0].text
    vector = sdk.embeddings.create("words").data[0].embedding
    assert isinstance(vector, list)
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)
    with pytest.raises(InvalidRequestError):
        sdk.chat.create(MESSAGES, max_tokens=-1)


def test_feedback_is_found_with_what_it_is_on(sdk: Adaptive) -> None:
    me = sdk.users.me()
    assert me is not None
    sdk.metrics.create("helpful", "bool", description="Did it help?")
    assert "helpful" in {metric.key for metric in sdk.metrics.list()}
    assert "helpful" in {metric.key for metric in sdk.metrics.list_all()}
    found = sdk.metrics.get("helpful")
    assert found is not None
    assert (found.kind, found.scoring_type) == ("BOOL", "HIGHER_IS_BETTER")
    choice = sdk.chat.create(MESSAGES, max_tokens=3, labels={"shop": "berlin"}).choices[0]
    assert choice.completion_id is not None
    sdk.feedback.log_metric(True, choice.completion_id, "helpful", user=me.id, details="yes")
    recorded = sdk.interactions.create(
        MESSAGES, "No.", model="tiny", labels={"shop": "paris"}, feedbacks=[{"metric": "helpful", "value": 0}]
    )
    assert len(recorded.feedback_ids) == 1
    interaction = sdk.interactions.get(choice.completion_id)
    assert interaction is not None
    assert [score.value for score in interaction.direct_scores] == [1.0]
    assert [(label.key, label.value) for label in interaction.labels] == [("shop", "berlin")]
    for tied in (None, "good", "bad"):
        assert sdk.feedback.log_preference("helpful", choice.completion_id, recorded.completion_id, tied=tied)
    compared = sdk.interactions.get(choice.completion_id)
    assert compared is not None
    assert len(compared.comparison_scores) == 3
    with pytest.raises(HarmoniaError):
        sdk.feedback.log_metric(7, choice.completion_id, "helpful")
    assert uuid.UUID(sdk.feedback.log_outcome(1, recorded.session_id, "helpful").outcome_id)


def test_interactions_are_filtered_paged_and_grouped(sdk: Adaptive) -> None:
    made = [sdk.interactions.create(MESSAGES, f"No {n}.", labels={"batch": "b", "n": str(n)}) for n in range(3)]
    ours: InteractionFilter = {"labels": [{"key": "batch"}]}
    page = sdk.interactions.list(filters=ours, page={"first": 2})
    assert (page.total_count, len(page.nodes), page.page_info.has_next_page) == (3, 2, True)
    rest = sdk.interactions.list(filters=ours, page={"first": 2, "after": page.page_info.end_cursor or ""})
    assert {node.id for node in (*page.nodes, *rest.nodes)} == {item.completion_id for item in made}
    one = sdk.interactions.list(filters={"labels": [{"key": "n", "value": ["1"]}], "session_id": made[1].session_id})
    assert [node.completion for node in one.nodes] == ["No 1."]
    groups = sdk.interactions.list_grouped("prompt", filters=ours)
    assert [(group.count, len(group.completions.nodes)) for group in groups.nodes] == [(3, 3)]
    assert sdk.interactions.get(str(uuid.uuid4())) is None


def test_graders_of_every_kind(sdk: Adaptive) -> None:
    judge = sdk.graders.create.binary_judge(
        key="polite",
        criteria="The answer is polite.",
        judge_model="tiny",
        examples=[{"input": MESSAGES, "output": "Thank you.", "passes": True, "reasoning": "It thanks."}],
    )
    assert (judge.grader_type, judge.metric.kind) == ("JUDGE", "BOOL")
    assert judge == sdk.graders.get("polite")
    ready = sdk.graders.create.prebuilt_judge(key="faithful", type="FAITHFULNESS", judge_model="tiny")
    assert ready.grader_type == "PREBUILT"
    source = "async def grade(thread) -> float:\n    return float(len(thread.messages()))\n"
    function = sdk.graders.create.function(key="long", fn=source, description="Counts.")
    assert function.grader_type == "FUNCTION"
    (verdict,) = sdk.graders.try_out("long", [[*MESSAGES, {"role": "assistant", "content": "Fine."}]])
    assert (verdict.value, verdict.error, verdict.score_id) == (float(len(MESSAGES)), None, None)
    recorded = sdk.interactions.create(MESSAGES, "Fine.")
    (verdict,) = sdk.graders.grade("long", [recorded.completion_id])
    assert verdict.completion_id == recorded.completion_id
    assert verdict.score_id is not None
    with pytest.raises(InvalidRequestError, match="cannot grade"):
        sdk.graders.create.function(key="wrong", fn="def grade(thread): return 1")
    with pytest.raises(InvalidRequestError, match="async def"):
        sdk.graders.create.function(key="wrong", fn=len)  # type: ignore[arg-type]
    custom = sdk.graders.create.custom(key="inside", description="In a recipe.")
    assert {grader.id for grader in sdk.graders.list()} == {judge.id, ready.id, function.id, custom.id}
    assert sdk.graders.lock("inside", True).locked
    sdk.graders.lock("inside", False)
    sdk.graders.delete("inside")
    assert sdk.graders.get("inside") is None
    assert isinstance(sdk.graders.test_external_endpoint("http://127.0.0.1:1"), RemoteEnvTestOffline)


def test_an_ab_test_begins_and_is_cancelled(sdk: Adaptive, tiny: Path) -> None:
    sdk.metrics.create("stars")
    sdk.models.add(str(tiny), "Other", "other")
    sdk.models.add_to_project("other")
    test = sdk.ab_tests.create("which", "stars", ["tiny", "other"], traffic_split=0.5)
    assert (test.score_type, test.traffic_split) == ("DIRECT", 0.5)
    assert [found.key for found in sdk.ab_tests.list(active=True)] == ["which"]
    found = sdk.ab_tests.get("which")
    assert found is not None
    assert {item.variant.key for item in found.report.variants} == {"tiny", "other"}
    sdk.ab_tests.cancel("which")
    assert sdk.ab_tests.list(active=True) == []
    with pytest.raises(InvalidRequestError, match="metric or preference"):
        sdk.ab_tests.create("x", "stars", ["tiny"], feedback_type="likes")  # type: ignore[arg-type]


def test_integrations_tell_events(sdk: Adaptive) -> None:
    assert {provider.name for provider in sdk.integrations.list_providers()} >= {"slack", "smtp", "webhook", "github"}
    provider = sdk.integrations.get_provider("webhook")
    assert provider is not None
    assert sdk.integrations.get_provider("pigeon") is None
    hook = {"url": "http://127.0.0.1:1/hook", "method": "POST", "headers": {}}
    events = [{"topic_pattern": "job:*", "scope": "TEAM"}]
    made = sdk.integrations.create("default", "Ours", "webhook", hook, events, "multishot")
    assert isinstance(made.config.connection, WebhookConfig)
    assert made.config.connection.url == hook["url"]
    assert made.config.notification_settings is not None
    changed = sdk.integrations.update(made.id, name="Theirs", enabled=False)
    assert (changed.name, changed.enabled) == ("Theirs", False)
    moved = sdk.integrations.update(made.id, connection={**hook, "url": "http://127.0.0.1:1/other"}).config
    assert isinstance(moved.connection, WebhookConfig)
    assert moved.connection.url.endswith("/other")
    assert moved.notification_settings == made.config.notification_settings
    assert [item.id for item in sdk.integrations.list("default")] == [made.id]
    with pytest.raises(InvalidRequestError, match="provider is one of"):
        sdk.integrations.create("default", "Ours", "pigeon", hook)  # type: ignore[arg-type]
    assert sdk.integrations.delete(made.id)
    assert sdk.integrations.get(made.id) is None


def test_pools_show_what_runs_where(sdk: Adaptive) -> None:
    (pool,) = sdk.compute_pools.list()
    assert pool.key == "default"
    assert "tiny" in {model.key for group in pool.harmony_groups for model in group.online_models}
