"""Adapters on a server that are to be faster: beside a draft of their base model, and with a draft of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.sdk import Adaptive
from tests.integration.control.accelerating import (
    ASK,
    FAST,
    TARGET,
    accepted,
    ask,
    ask_until,
    client,
    is_drafted,
    said,
    serving_both,
    wait_until,
)
from tests.integration.control.conftest import Plane
from tests.integration.tiny_model import make_adapter, make_draft, make_merged_draft

ADAPTER, OWN = "polite", "polite_accelerated"


@pytest.fixture
def running(tmp_path: Path, tiny: Path) -> Iterator[Plane]:
    with serving_both(tmp_path, tiny) as plane, client(plane) as adaptive:
        # So slight a change that the base model's draft is right at times.
        folder = make_adapter(tmp_path / ADAPTER, strength=0.02, base=tiny)
        adaptive.models.add(str(folder), ADAPTER)
        yield plane


@pytest.fixture
def sdk(running: Plane) -> Iterator[Adaptive]:
    with client(running) as adaptive:
        yield adaptive


def workers(plane: Plane) -> list[str]:
    assert plane.services is not None
    return sorted(status.key for status in plane.services.serving.router.statuses())


def places(plane: Plane, model: str) -> list[str]:
    """Where a model answers, by the models under whose keys the workers run."""
    router = plane.services.serving.router  # type: ignore[union-attr]
    found = [(status.key, router.find(status.replica)) for status in router.statuses()]
    return sorted(key for key, replica in found if replica is not None and model in replica.keys)


def test_beside_a_draft_of_its_base_model_it_gets_proposals(
    sdk: Adaptive, running: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    for model in (TARGET, FAST, ADAPTER):
        sdk.models.deploy(model, wait=True)
    plain = ask(sdk, ADAPTER)
    assert (accepted(plain), places(running, ADAPTER)) == (0, [TARGET])
    stop, answers = threading.Event(), list[str]()

    def keep_asking() -> None:
        with client(running) as other:
            while not stop.is_set():
                stream = other.chat.create(messages=ASK, model=ADAPTER, stream=True, temperature=0, max_tokens=300)
                answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        assert sdk.models.deploy(ADAPTER, num_draft_steps=3, wait=True).num_draft_steps == 3
        wait_until(lambda: places(running, ADAPTER) == [FAST])
        fast = ask_until(sdk, ADAPTER, accepted)
        assert accepted(fast) > 0 and fast.usage is not None and fast.usage.acceptance_rate is not None
        sdk.models.terminate(FAST)
        wait_until(lambda: places(running, ADAPTER) == [TARGET])
        enough = len(answers) + 2
        wait_until(lambda: len(answers) >= enough or not asking.is_alive())
    finally:
        stop.set()
        asking.join(60)
    assert len(answers) >= enough
    assert said(plain) == said(fast)
    assert len(set(answers)) == 1 and answers[0].startswith(str(said(plain)).rstrip("\ufffd"))
    assert "no draft model" not in caplog.text


def test_what_it_was_asked_for_holds_for_each_project(sdk: Adaptive, running: Plane) -> None:
    sdk.models.deploy(FAST, wait=True)
    sdk.models.deploy(ADAPTER, num_draft_steps=2, wait=True)
    sdk.projects.create("other")
    sdk.models.deploy(ADAPTER, project="other", wait=True)
    fast, plain = ask_until(sdk, ADAPTER, accepted), ask(sdk, ADAPTER, "other")
    assert (said(fast), workers(running)) == (said(plain), [FAST])
    assert accepted(fast) > 0 and accepted(plain) == 0
    kept = str(fast.choices[0].completion_id)
    wait_until(lambda: sdk.interactions.get(kept) is not None)
    told = sdk.interactions.get(kept)
    assert told is not None and told.metadata.usage is not None
    assert told.metadata.usage.accepted_prediction_tokens == accepted(fast)
    groups = [group for pool in sdk.compute_pools.list() for group in pool.harmony_groups]
    assert {model.key for group in groups for model in group.online_models} == {ADAPTER, FAST}


def test_a_draft_that_fails_takes_nothing_with_it(sdk: Adaptive, running: Plane, tiny: Path, tmp_path: Path) -> None:
    draft = make_draft(tmp_path / "broken", tiny, TARGET)
    words = draft / "tokenizer.json"
    words.write_text(words.read_text().replace("<|im_start|>", "<|begin|>"))
    sdk.models.add(str(draft), "broken")
    sdk.models.deploy(ADAPTER, num_draft_steps=2, wait=True)
    plain = ask(sdk, ADAPTER)
    with pytest.raises(UnavailableError, match="has another tokenizer than"):
        sdk.models.deploy("broken", wait=True)
    assert said(ask(sdk, ADAPTER)) == said(plain)
    assert sdk.models.get(ADAPTER).error is None  # type: ignore[union-attr]
    sdk.models.update(ADAPTER, desired_online=False)
    assert sdk.models.deploy(ADAPTER, wait=True).status == "ONLINE"
    assert said(ask(sdk, ADAPTER)) == said(plain)


def test_with_a_draft_of_its_own(sdk: Adaptive, running: Plane, tiny: Path, tmp_path: Path) -> None:
    draft = make_merged_draft(tmp_path / OWN, tiny, tmp_path / ADAPTER, num_draft_steps=2)
    sdk.models.add(str(draft), OWN)
    sdk.models.update_compute_config(TARGET, {"kv_cache_len": 4096})
    found = sdk.models.get(OWN)
    assert found is not None and found.backbone is not None and found.compute_config is not None
    assert (found.is_spec_dec_draft, found.is_adapter, found.backbone.key) == (True, False, ADAPTER)
    assert found.compute_config.kv_cache_len == 4096
    with pytest.raises(InvalidRequestError, match=f"it answers for the drafts {OWN}; delete them first"):
        sdk.models.delete(ADAPTER)
    assert sdk.models.deploy(OWN, wait=True).num_draft_steps == 2
    sdk.models.deploy(ADAPTER, wait=True)
    plain, fast = ask(sdk, ADAPTER), ask_until(sdk, OWN, accepted)
    assert said(fast) == said(plain)
    assert accepted(plain) == 0 and fast.usage is not None and fast.usage.acceptance_rate == 1
    assert workers(running) == [OWN, TARGET]


def test_the_recipe_trains_its_draft(sdk: Adaptive, running: Plane, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"What is {number}?"}]} for number in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)))
    sdk.datasets.upload(str(file), "prompts")
    args = {"target_model": ADAPTER, "draft_model": "layers:1", "dataset": "prompts", "steps": 2}
    job = sdk.jobs.run("specdec_alignment", 1, {**args, "max_answer_tokens": 8, "max_sequence_length": 256})
    job = sdk.jobs.wait(job.id, timeout_s=100)
    assert job.status == "COMPLETED", sdk.jobs.logs(job.id)
    assert sdk.models.deploy(OWN, num_draft_steps=3, wait=True).num_draft_steps == 3
    sdk.models.deploy(ADAPTER, wait=True)
    assert said(ask_until(sdk, OWN, is_drafted)) == said(ask(sdk, ADAPTER))
