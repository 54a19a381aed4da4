"""What integrations are told without anybody asking: how jobs end, and how models fare."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client import (
    AddModelInput,
    ConnectionConfigInputWebhook,
    DeliveryScopeInput,
    SubscriptionInput,
)

from harmonia.config.control import ControlConfig, Notifications
from tests.integration.control.conftest import Plane
from tests.integration.control.receiving import Listener, signed


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """One whose integrations may be on this machine."""
    with Plane(ControlConfig(data_dir=tmp_path, notifications=Notifications(allow_private=True))) as plane:
        yield plane


def subscribe(adaptive: Adaptive, listener: Listener, pattern: str) -> str:
    """Have the listener told; the key with which messages are signed."""
    hook = ConnectionConfigInputWebhook(url=listener.url, method="POST", headers={})
    wish = SubscriptionInput(topicPattern=pattern, scope=DeliveryScopeInput("TEAM"))
    made = adaptive.integrations.create("default", "Hook", "webhook", hook, [wish])
    return str(made.config.connection.headers["X-Harmonia-Secret"])


ECHO = """
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    word: str

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    assert config.word != "no", "said no"
"""


def test_jobs_that_end_are_told_of(plane: Plane, adaptive: Adaptive, listener: Listener, tmp_path: Path) -> None:
    adaptive.projects.create("lab", "Lab")
    adaptive.set_default_project("lab")
    (tmp_path / "echo.py").write_text(ECHO)
    adaptive.recipes.upload(str(tmp_path / "echo.py"))
    key = subscribe(adaptive, listener, "use_case:lab:job:*")
    done = adaptive.jobs.run("echo", 0, args={"word": "yes"}, name="First")
    topic, payload = signed(listener.next(), key)
    assert topic == "project:lab:job:completed"
    assert (payload["jobId"], payload["jobName"], payload["jobStatus"]) == (done.id, "First", "DONE")
    assert (payload["jobInput"]["word"], payload["jobProgress"], payload["jobError"]) == ("yes", 1.0, None)
    assert payload["jobStartedAt"] <= payload["jobEndedAt"]
    adaptive.jobs.run("echo", 0, args={"word": "no"})
    topic, payload = signed(listener.next(), key)
    assert (topic, payload["jobStatus"]) == ("project:lab:job:failed", "ERROR")
    assert "said no" in payload["jobError"]
    waiting = adaptive.jobs.run("echo", 0, args={"word": "yes"})
    adaptive.jobs.cancel(waiting.id)
    adaptive.jobs.cancel(waiting.id)
    topic, payload = signed(listener.next(), key)
    assert (topic, payload["jobStatus"]) == ("project:lab:job:canceled", "CANCELLED")
    with pytest.raises(queue.Empty):  # each end once
        listener.arrived.get(timeout=0.5)


def test_models_that_fail_are_told_of_where_they_are_wanted(
    plane: Plane, adaptive: Adaptive, listener: Listener, tiny: Path
) -> None:
    for project in ("lab", "other"):
        adaptive.projects.create(project, project.title())
    adaptive.set_default_project("lab")
    adaptive._gql_client.add_model(AddModelInput(path=str(tiny), name="Tiny", key="tiny"))
    key = subscribe(adaptive, listener, "project:*:model:*")
    adaptive.models.update_compute_config("tiny", {"kv_cache_len": 2**31 - 16})
    adaptive.models.add_to_project("tiny", "other")
    adaptive.models.deploy("tiny", wait=False)
    topic, payload = signed(listener.next(), key)
    assert topic == "project:lab:model:error"
    assert (payload["modelKey"], payload["modelStatus"]) == ("tiny", "ERROR")
    assert "What would help" in payload["modelError"]
    adaptive.models.update_compute_config("tiny", {"kv_cache_len": 4096})
    topic, payload = signed(listener.next(), key)
    assert (topic, payload["modelStatus"], payload["modelError"]) == ("project:lab:model:online", "ONLINE", None)
