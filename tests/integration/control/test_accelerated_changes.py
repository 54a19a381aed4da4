"""Accelerated models on a server while it runs: other numbers of proposals, lost workers, memory, no draft at all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harmonia.cli.main import app
from harmonia.errors import UnavailableError
from harmonia.sdk import Adaptive
from tests.integration.control.accelerating import (
    ASK,
    FAST,
    PROJECT,
    TARGET,
    accepted,
    ask,
    ask_until,
    client,
    counted,
    serving_both,
    wait_until,
)
from tests.integration.control.conftest import Plane


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Plane]:
    with serving_both(tmp_path_factory.mktemp("plane"), tiny) as plane:
        yield plane


@pytest.fixture
def sdk(running: Plane) -> Iterator[Adaptive]:
    with client(running) as adaptive:
        yield adaptive


def test_another_number_of_steps_takes_effect_at_once(sdk: Adaptive, running: Plane) -> None:
    assert sdk.models.deploy(FAST, num_draft_steps=1, wait=True).num_draft_steps == 1
    router = running.services.serving.router  # type: ignore[union-attr]
    before, first = router.pick(FAST).replica, ask_until(sdk, FAST, accepted)
    # One proposal at a time: at most every other token was proposed.
    assert first.usage is not None and 0 < accepted(first) <= first.usage.completion_tokens / 2
    stop, answers = threading.Event(), list[str | None]()

    def keep_asking() -> None:
        with client(running) as other:
            while not stop.is_set():
                answers.append(ask(other, FAST).choices[0].message.content)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        for steps in (8, 2, 5):
            assert sdk.models.update(FAST, num_draft_steps=steps).num_draft_steps == steps
            enough = len(answers) + 2
            wait_until(lambda enough=enough: len(answers) >= enough or not asking.is_alive())  # type: ignore[misc]
    finally:
        stop.set()
        asking.join(60)
    assert len(answers) >= 6
    assert set(answers) == {first.choices[0].message.content}
    assert router.pick(FAST).replica == before
    seen = counted(running, before)
    assert seen["accepted_tokens"] == seen["drafted_tokens"] > 0


def all_off(sdk: Adaptive, running: Plane) -> None:
    for model in (TARGET, FAST):
        sdk.models.terminate(model, force=True)
    wait_until(lambda: not running.services.serving.router.statuses())  # type: ignore[union-attr]


def test_a_killed_worker_comes_back_with_its_draft(sdk: Adaptive, running: Plane) -> None:
    sdk.models.deploy(FAST, wait=True)
    router = running.services.serving.router  # type: ignore[union-attr]
    chosen = router.pick(FAST).replica
    for _ in range(2):
        ask(sdk, FAST)
    asked = counted(running, chosen)["requests"]
    pid = next(status.pid for status in router.statuses() if status.replica == chosen)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any(status.restarts for status in router.statuses()) and router.serves(FAST))
    ask_until(sdk, FAST, accepted)
    assert counted(running, chosen)["requests"] < asked, "counts begin anew"


def test_without_room_for_the_draft_the_reason_names_it(sdk: Adaptive, running: Plane) -> None:
    sdk.models.update(FAST, desired_online=False)
    wait_until(lambda: sdk.models.get(FAST).online == "OFFLINE")  # type: ignore[union-attr]
    sdk.models.update_compute_config(FAST, {"kv_cache_len": 2**31 - 16})
    with pytest.raises(UnavailableError, match="no draft saves"):
        sdk.models.deploy(FAST, wait=True)
    sdk.models.update_compute_config(FAST, {"kv_cache_len": None})
    all_off(sdk, running)


def test_a_model_without_a_draft_has_the_conversation_searched(
    sdk: Adaptive, running: Plane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTIVE_BASE_URL", running.url)
    monkeypatch.setenv("ADAPTIVE_API_KEY", running.api_key)
    command = ["model", "deploy", TARGET, "--project", PROJECT, "--num-draft-steps", "2", "--wait"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert "what followed in the conversation before is proposed instead" in caplog.text
    # One token again and again, so that the next one is known.
    same = {"messages": ASK, "model": TARGET, "temperature": 0, "max_tokens": 40, "logit_bias": {"40": 100.0}}
    give_up = time.monotonic() + 90
    while not accepted(response := sdk.chat.create(**same)):
        assert time.monotonic() < give_up, "nothing was found there"
    # Another project has none of it.
    sdk.projects.create("plain")
    sdk.models.deploy(TARGET, project="plain")
    plain = sdk.chat.create(project="plain", **same)
    assert plain.choices[0].message.content == response.choices[0].message.content
    assert accepted(plain) == 0 and plain.usage is not None and plain.usage.acceptance_rate is None
    sdk.models.detach(TARGET)
    sdk.models.add_to_project(TARGET)
    assert {service.key: service.num_draft_steps for service in sdk.projects.models()}[TARGET] is None
    all_off(sdk, running)
