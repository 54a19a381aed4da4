"""The registry, deployments and how they fare, through the published SDK with a tiny real model behind it."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client import AddModelInput, ModelServiceData
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from harmonia.client.recipe.http_plane import HttpControlPlane
from harmonia.config.control import ControlConfig
from tests.integration.control.conftest import Plane, on_both

PROJECT = "tickets"


@pytest.fixture(scope="module")
def adapter(tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that says which model it changes."""
    folder = tmp_path_factory.mktemp("named") / "adapter"
    shutil.copytree(tiny_adapters[0], folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tiny)}))
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(ControlConfig(data_dir=tmp_path_factory.mktemp("plane"))) as plane:
        yield plane


@pytest.fixture(scope="module")
def sdk(running: Plane, tiny: Path) -> Iterator[Adaptive]:
    """The admin, with a project and the tiny model registered."""
    client = Adaptive(base_url=running.url, api_key=running.api_key)
    client.projects.create(PROJECT, "Tickets")
    client.set_default_project(PROJECT)
    add(client, tiny, "tiny")
    yield client
    client.close()


def add(client: Adaptive, path: Path | str, key: str) -> object:
    return client._gql_client.add_model(AddModelInput(path=str(path), name=key.title(), key=key)).add_model


def wait_until(check: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def service(client: Adaptive, key: str) -> ModelServiceData:
    return next(item for item in client.projects.get(PROJECT).model_services if item.key == key)


def test_a_model_is_registered_with_what_its_files_say(sdk: Adaptive) -> None:
    model = sdk.models.get("tiny")
    assert (model.name, model.is_adapter, model.is_external, model.online.value) == ("Tiny", False, False, "OFFLINE")
    assert model.size == 107_072
    assert (model.compute_config.tp, model.compute_config.max_seq_len) == (1, 512)
    assert [item.key for item in sdk.models.list()] == ["tiny"]
    assert sdk.models.get("nothing") is None


def test_what_cannot_be_registered_is_named(sdk: Adaptive, tiny: Path, tiny_adapters: tuple[Path, ...]) -> None:
    with pytest.raises(GraphQLClientGraphQLMultiError, match="'tiny' is taken"):
        add(sdk, tiny, "tiny")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="no such file or folder"):
        add(sdk, "/nowhere", "other")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="not a model folder"):
        add(sdk, tiny.parent, "other")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="base_model_name_or_path"):
        add(sdk, tiny_adapters[0], "other")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="is no key"):
        add(sdk, tiny, "a b")


def test_deploying_waits_and_what_else_is_wanted_is_checked(sdk: Adaptive) -> None:
    for steps in (0, 9):
        with pytest.raises(GraphQLClientGraphQLMultiError, match="from 1 to 8"):
            sdk.models.deploy("tiny", num_draft_steps=steps)
    with pytest.raises(AdaptiveEntityNotFoundError, match="Compute pool 'moon' does not exist"):
        sdk.models.deploy("tiny", placement={"compute_pools": ["moon"]})
    assert sdk.projects.get(PROJECT).model_services == []
    deployed = sdk.models.deploy("tiny", wait=True, make_default=True, placement={"compute_pools": ["default"]})
    assert (deployed.key, deployed.desired_online, deployed.model.online.value) == ("tiny", True, "ONLINE")
    assert service(sdk, "tiny").is_default
    assert sdk.models.deploy("tiny", wait=True).id == deployed.id


def test_an_adapter_runs_beside_its_base_model(sdk: Adaptive, adapter: Path) -> None:
    sdk.models.deploy("tiny", wait=True)
    added = add(sdk, adapter, "support/v1")
    assert (added.is_adapter, added.backbone.key) == (True, "tiny")
    deployed = sdk.models.attach("support/v1", wait=True)
    assert deployed.model.online.value == "ONLINE"
    groups = sdk.compute_pools.list()[0].harmony_groups
    assert {model.key for model in groups[0].online_models} == {"tiny", "support/v1"}
    sdk.models.detach("support/v1", PROJECT)
    wait_until(lambda: sdk.models.get("support/v1").online.value == "OFFLINE")
    assert sdk.models.get("tiny").online.value == "ONLINE"


def test_jobs_get_what_was_set_of_a_model_and_no_defaults(running: Plane, sdk: Adaptive) -> None:
    sdk.models.update_compute_config("tiny", {"max_seq_len": 300})
    jobs = HttpControlPlane(running.url, running.api_key, PROJECT)
    found = [asyncio.run(jobs.get_model_config(key)) for key in ("tiny", "support/v1")]
    jobs.close()
    assert [(model.tp, model.kv_cache_len, model.max_seq_len) for model in found] == [(None, None, 300)] * 2


def test_a_compute_config_takes_effect_while_the_model_serves(running: Plane, sdk: Adaptive) -> None:
    sdk.models.deploy("tiny", wait=True)
    router = running.services.serving.router
    for refused in ({"tp": 2}, {"max_seq_len": 513}, {"kv_cache_len": 1}):
        with pytest.raises(GraphQLClientGraphQLMultiError, match=next(iter(refused))):
            sdk.models.update_compute_config("tiny", refused)
    updated = sdk.models.update_compute_config("tiny", {"kv_cache_len": 4096, "max_seq_len": 256})
    assert (updated.compute_config.kv_cache_len, updated.compute_config.max_seq_len) == (4096, 256)
    seen = set()

    def is_replaced() -> bool:
        seen.add(router.serves("tiny"))
        return router.pick("tiny").description.max_seq_len == 256

    wait_until(is_replaced)
    assert seen == {True}
    assert router.pick("tiny").description.kv_cache_len == 4096
    wait_until(lambda: len(router.statuses()) == 1)


def test_what_does_not_fit_is_told_and_the_old_worker_serves_on(running: Plane, sdk: Adaptive) -> None:
    sdk.models.deploy("tiny", wait=True)
    before = running.services.serving.router.pick("tiny").replica
    sdk.models.update_compute_config("tiny", {"kv_cache_len": 2**31 - 16})
    wait_until(lambda: sdk.models.get("tiny").error is not None, 90)
    model = sdk.models.get("tiny")
    assert "What would help" in model.error
    wait_until(lambda: sdk.models.get("tiny").online.value == "ONLINE")
    assert running.services.serving.router.pick("tiny").replica == before
    sdk.models.update_compute_config("tiny", {"kv_cache_len": 4096})
    wait_until(lambda: sdk.models.get("tiny").error is None)


def test_deploying_what_does_not_fit_says_so(sdk: Adaptive, tiny: Path) -> None:
    add(sdk, tiny, "huge")
    sdk.models.update_compute_config("huge", {"kv_cache_len": 2**31 - 16})
    with pytest.raises(GraphQLClientGraphQLMultiError, match=r"kv_cache_len \d+ fits"):
        sdk.models.deploy("huge", wait=True)
    assert sdk.models.get("huge").online.value == "ERROR"
    sdk.models.update("huge", desired_online=False)
    wait_until(lambda: sdk.models.get("huge").online.value == "OFFLINE")


def test_terminating_needs_force_when_several_projects_want_the_model(sdk: Adaptive) -> None:
    sdk.models.deploy("tiny", wait=True)
    sdk.projects.create("second", "Second")
    assert sdk.models.add_to_project("tiny", "second")
    with pytest.raises(Exception, match="does not exist"):
        sdk.models.add_to_project("nothing", "second")
    sdk.models.deploy("tiny", project="second")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="second, tickets; give force"):
        sdk.models.terminate("tiny")
    assert "tickets" in sdk.models.terminate("tiny", force=True)
    wait_until(lambda: sdk.models.get("tiny").online.value == "OFFLINE")


def test_without_devices_for_inference_nothing_is_served(sdk: Adaptive) -> None:
    pool = sdk.compute_pools.list()[0]
    with pytest.raises(GraphQLClientGraphQLMultiError, match="from 0 to"):
        sdk.compute_pools.resize_inference_partition("default", pool.harmony_groups[0].world_size + 1)
    sdk.compute_pools.resize_inference_partition("default", 0)
    with pytest.raises(GraphQLClientGraphQLMultiError, match="resize"):
        sdk.models.deploy("tiny")
    sdk.compute_pools.resize_inference_partition("default", 1)
    assert sdk.models.deploy("tiny", wait=True).model.online.value == "ONLINE"
    sdk.compute_pools.resize_inference_partition("default", 0)
    wait_until(lambda: sdk.models.get("tiny").online.value == "OFFLINE")


def test_an_external_model_never_tells_its_key(running: Plane, sdk: Adaptive) -> None:
    added = sdk.models.add_external("Judge", "gpt-5", "sk-very-secret", "open_ai")
    assert (added.key, added.is_external, added.provider_name.value) == ("judge", True, "OPEN_AI")
    assert added.compute_config is None
    kept = [file.read_bytes() for file in running.config.folder.glob("harmonia.db*")]
    assert any(b"gpt-5" in content for content in kept)
    assert not any(b"sk-very-secret" in content for content in kept)


def test_a_restart_serves_what_was_deployed(tmp_path: Path, tiny: Path) -> None:
    config = ControlConfig(data_dir=tmp_path)
    with Plane(config) as plane:
        client = Adaptive(base_url=plane.url, api_key=plane.api_key)
        client.projects.create(PROJECT, "Tickets")
        client.set_default_project(PROJECT)
        add(client, tiny, "tiny")
        client.models.update_compute_config("tiny", {"kv_cache_len": 2048})
        client.models.deploy("tiny")
        client.close()
        api_key = plane.api_key
    with Plane(config) as plane:
        client = Adaptive(base_url=plane.url, api_key=api_key)
        wait_until(lambda: client.models.get("tiny").online.value == "ONLINE")
        assert plane.services.serving.router.pick("tiny").description.kv_cache_len == 2048
        client.close()


@on_both
def test_the_registry_on_either_database(plane: Plane, adaptive: Adaptive, tiny: Path, adapter: Path) -> None:
    adaptive.projects.create(PROJECT, "Tickets")
    added = [add(adaptive, tiny, "tiny"), add(adaptive, adapter, "support")]
    adaptive.models.add_external("Judge", "gpt-5", "sk-very-secret", "open_ai")
    listed = {model.key: model for model in adaptive.models.list({"trainable": True})}
    assert {key: model.backbone and model.backbone.key for key, model in listed.items()} == {
        "tiny": None,
        "support": "tiny",
    }
    assert adaptive.models.add_to_project("judge", PROJECT)
    adaptive.models.deploy("judge", project=PROJECT)
    adaptive.models.update("judge", project=PROJECT, is_default=True)
    assert [project.key for project in adaptive.models.list()[-1].projects] == [PROJECT]
    assert adaptive.models.update_compute_config(added[0].id, {"kv_cache_len": 64}).compute_config.kv_cache_len == 64
    with pytest.raises(GraphQLClientGraphQLMultiError, match="is an adapter"):
        adaptive.models.update_compute_config("support", {"kv_cache_len": 64})
    assert adaptive.models.detach("judge", PROJECT)
    assert adaptive.projects.get(PROJECT).model_services == []
