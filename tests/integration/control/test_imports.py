"""Models of Hugging Face's hub, through the published SDK, from a hub that runs in a thread here."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client import AddHFModelInput, JobData
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from harmonia.cli import first_models
from harmonia.cli.main import app
from harmonia.config.control import ControlConfig
from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.sdk import Adaptive as OurSdk
from harmonia.server.db.database import Database
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.services import Services
from tests.integration.control.conftest import ADMIN, Plane, on_both
from tests.integration.control.hub import LARGE, Hub

BASE, ADAPTER = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"
"""Names that the published SDK lets through."""
PROJECT = "tickets"
TOKEN = "hf_veryverysecret"


@pytest.fixture(scope="module")
def published(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with what people publish beside it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(tiny, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    hub = Hub({BASE: published})
    yield hub
    hub.close()


def config(folder: Path, hub: Hub, address: str | None = None, **more: object) -> ControlConfig:
    db = {} if address is None else {"url": address}
    return ControlConfig(data_dir=folder, db=db, hub={"endpoint": hub.url, "spare_disk_bytes": 0, **more})


@pytest.fixture
def plane(tmp_path: Path, hub: Hub, database_address: str) -> Iterator[Plane]:
    with Plane(config(tmp_path, hub, database_address)) as plane:
        yield plane


@pytest.fixture
def sdk(plane: Plane) -> Iterator[Adaptive]:
    client = Adaptive(base_url=plane.url, api_key=plane.api_key)
    client.projects.create(PROJECT, "Tickets")
    client.set_default_project(PROJECT)
    yield client
    client.close()


def wait_until(check: Callable[[], bool], timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def ask(client: Adaptive, **given: str) -> JobData:
    """An import that the published SDK would check for itself."""
    default = {"modelId": BASE, "outputModelName": "Tiny", "outputModelKey": "tiny", "hfToken": ""}
    return client._gql_client.add_hf_model(AddHFModelInput(**{**default, **given})).import_hf_model


def ended(client: Adaptive, job: JobData) -> JobData:
    wait_until(lambda: client.jobs.get(job.id).status.value not in ("PENDING", "RUNNING"))
    return client.jobs.get(job.id)


def keeps_no_secret(plane: Plane) -> bool:
    files = [path for path in plane.config.folder.rglob("*") if path.is_file()]
    return all(TOKEN.encode() not in path.read_bytes() for path in files)


@on_both
def test_a_model_is_imported(sdk: Adaptive, plane: Plane, hub: Hub, published: Path) -> None:
    hub.tokens[BASE] = TOKEN
    job = sdk.models.add_hf_model(BASE, "Tiny", "tiny", TOKEN)
    assert (job.name, job.kind.value, job.project, job.recipe) == (f"Import {BASE}", "CUSTOM", None, None)
    assert job.details.args == {"model_id": BASE, "output_model_name": "Tiny", "output_model_key": "tiny"}
    done = ended(sdk, job)
    assert (done.status.value, done.error, done.progress) == ("COMPLETED", None, 1.0)
    [stage] = done.stages
    entry = plane.config.registry / "tiny"
    names = {path.name for path in entry.iterdir()}
    assert names == {path.name for path in published.iterdir() if path.suffix in (".json", ".jinja")} | {
        "model.safetensors"
    }
    size = sum(path.stat().st_size for path in entry.iterdir())
    assert (stage.status.value, stage.info.total_num_samples, stage.info.processed_num_samples) == ("DONE", size, size)
    assert [(item.kind.value, item.metadata) for item in done.artifacts] == [("MODEL", {"model_key": "tiny"})]
    model = sdk.models.get("tiny")
    assert (model.name, model.size, model.is_adapter) == ("Tiny", 107_072, False)
    assert {asked.authorization for asked in hub.asked} == {f"Bearer {TOKEN}"}
    assert keeps_no_secret(plane)


def test_an_adapter_finds_the_base_that_was_imported_under_another_name(
    sdk: Adaptive, plane: Plane, hub: Hub, tiny_adapters: tuple[Path, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapters[0], folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": BASE}))
    hub.models[ADAPTER] = folder
    early = ended(sdk, sdk.models.add_hf_model(ADAPTER, "Support", "support", ""))
    assert early.status.value == "FAILED"
    assert f"adapter of {BASE}, which is not registered" in early.error
    ended(sdk, sdk.models.add_hf_model(BASE, "Tiny", "base", ""))
    fetched = len(hub.fetched("adapter_model.safetensors"))
    done = ended(sdk, sdk.models.add_hf_model(ADAPTER, "Support", "support", ""))
    assert done.error is None
    assert len(hub.fetched("adapter_model.safetensors")) == fetched, "what was there came again"
    added = sdk.models.get("support")
    assert (added.is_adapter, added.backbone.key) == (True, "base")
    assert sdk.models.deploy("support", wait=True).model.online.value == "ONLINE"


def test_what_is_wrong_is_told_before_anything_is_fetched(sdk: Adaptive, plane: Plane, hub: Hub) -> None:
    def refused(match: str, **given: str) -> None:
        with pytest.raises(GraphQLClientGraphQLMultiError, match=match):
            ask(sdk, **given)

    refused("is no key", outputModelKey="a b")
    refused("is no name", outputModelName=" ")
    refused("is no model of the hub", modelId="../../etc")
    refused("is no model of the hub", modelId="a/b/c.bin")
    refused("a token has letters", hfToken="hf_a b")
    with pytest.raises(AdaptiveEntityNotFoundError, match="Compute pool 'moon' does not exist"):
        ask(sdk, computePool="moon")
    (plane.config.registry / "kept").mkdir(parents=True)
    refused("holds files under the key 'kept'", outputModelKey="kept")
    sdk.models.add_external("Judge", "gpt-5", "sk-x", "open_ai")
    refused("'judge' is taken", outputModelKey="judge")
    assert hub.asked == []
    hub.stalls = threading.Event()
    job = ask(sdk)
    refused(f"job {job.id} imports a model as 'tiny' already")
    hub.stalls.set()
    assert ended(sdk, job).status.value == "COMPLETED"
    refused("'tiny' is taken")


def test_what_only_the_hub_knows_ends_the_job_with_a_remedy(sdk: Adaptive, hub: Hub, tmp_path: Path) -> None:
    pickled, many, odd = tmp_path / "pickled", tmp_path / "many", tmp_path / "odd"
    for folder in (pickled, many, odd):
        folder.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    for quant in ("Q4_0", "Q8_0"):
        (many / f"tiny-{quant}.gguf").write_bytes(b"GGUF")
    (odd / "config.json").write_text('{"model_type": "unheard-of", "architectures": ["UnheardOf"]}')
    (odd / "model.safetensors").write_bytes(b"x" * LARGE)
    hub.models |= {"a/pickled": pickled, "a/many": many, "a/odd": odd, "a/gated": odd, "a/secret": odd}
    hub.tokens = {"a/gated": "right", "a/secret": "right"}
    hub.gated = {"a/gated"}
    wrong = {
        "a/nothing": "has no model 'a/nothing' that can be read without a token",
        "a/secret": "give an hf_token with access",
        "a/gated": f"accept its terms at {hub.url}/a/gated",
        "a/pickled": "pickles, are not read since they may run code",
        "a/many": "name one as a/many/FILE. It has tiny-Q4_0.gguf, tiny-Q8_0.gguf",
        "a/many/tiny-Q2_K.gguf": "there is no such GGUF file",
        "a/odd": "unheard-of",
    }
    jobs = [ask(sdk, modelId=hub_id, outputModelKey=f"m{number}") for number, hub_id in enumerate(wrong)]
    for job, words in zip(jobs, wrong.values(), strict=True):
        done = ended(sdk, job)
        assert (done.status.value, words in done.error) == ("FAILED", True), done.error
    assert sdk.models.list() == []
    assert hub.fetched("model.safetensors") == [], "weights came that cannot be used"
    hub.is_down = True
    assert "answers HTTP 503; try again later" in ended(sdk, ask(sdk)).error


def test_a_hub_that_cannot_be_reached_and_a_full_disk_are_told(hub: Hub, tmp_path: Path) -> None:
    settings = config(tmp_path, hub, spare_disk_bytes=10**18)
    with Plane(settings) as plane, contextlib.closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as client:
        full = ended(client, ask(client))
        assert "GB are free" in full.error and "ADAPTIVE_MODEL_REGISTRY" in full.error
        hub.close()
        gone = ended(client, ask(client))
        assert f"the hub at {hub.url} cannot be reached" in gone.error and "HTTPS_PROXY" in gone.error
        logs = httpx.get(
            f"{plane.url}/api/v1/jobs/{gone.id}/logs", headers={"Authorization": f"Bearer {plane.api_key}"}
        )
        assert "ConnectError" in logs.text


def test_a_download_that_breaks_goes_on_where_it_was(sdk: Adaptive, hub: Hub) -> None:
    hub.breaks_after = {"model.safetensors": 200_000}
    assert ended(sdk, ask(sdk)).error is None
    first, second = hub.fetched("model.safetensors")
    assert first.range is None
    assert int(second.range.removeprefix("bytes=").rstrip("-")) >= 100_000
    hub.breaks_after, hub.knows_ranges = {"model.safetensors": 200_000}, False
    assert ended(sdk, ask(sdk, outputModelKey="again")).error is None
    hub.garbled = {"model.safetensors"}
    assert "is not what the hub says it is" in ended(sdk, ask(sdk, outputModelKey="third")).error


def test_canceling_stops_the_download_and_removes_what_came(sdk: Adaptive, plane: Plane, hub: Hub) -> None:
    hub.stalls = threading.Event()
    job = ask(sdk, hfToken=TOKEN)
    folder = plane.config.registry / ".incoming" / "tiny"
    wait_until(lambda: 0 < sdk.jobs.get(job.id).progress < 1)
    assert sdk.jobs.get(job.id).status.value == "RUNNING"
    assert folder.is_dir()
    sdk.jobs.cancel(job.id)
    wait_until(lambda: not folder.exists())
    assert keeps_no_secret(plane)
    assert sdk.jobs.get(job.id).status.value == "CANCELED"
    assert sdk.models.get("tiny") is None
    hub.stalls.set()
    assert ended(sdk, ask(sdk)).status.value == "COMPLETED"


def test_a_restart_goes_on_with_what_was_accepted(hub: Hub, tmp_path: Path) -> None:
    hub.tokens[BASE], hub.stalls = TOKEN, threading.Event()
    settings = config(tmp_path, hub, imports=1)
    with Plane(settings) as plane, contextlib.closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as client:
        jobs = [ask(client, hfToken=TOKEN), ask(client, hfToken=TOKEN, outputModelKey="second")]
        wait_until(lambda: client.jobs.get(jobs[0].id).progress > 0)
        assert client.jobs.get(jobs[1].id).status.value == "PENDING"
        assert keeps_no_secret(plane)
        api_key = plane.api_key
    hub.stalls.set()
    with Plane(settings) as plane, contextlib.closing(Adaptive(base_url=plane.url, api_key=api_key)) as client:
        assert [ended(client, job).status.value for job in jobs] == ["COMPLETED", "COMPLETED"]
        assert {model.key for model in client.models.list()} == {"tiny", "second"}
        assert any(asked.range for asked in hub.fetched("model.safetensors"))


def test_imports_are_shown_to_their_makers_and_to_those_who_may_import(sdk: Adaptive, plane: Plane) -> None:
    job = ended(sdk, ask(sdk))
    keys = {
        role: sdk.users.create_service_account(role, teams_with_role=[("default", role)]).api_key
        for role in ("platform-admin", "read-only")
    }
    seen = {}
    for role, api_key in keys.items():
        with contextlib.closing(Adaptive(base_url=plane.url, api_key=api_key)) as client:
            seen[role] = client.jobs.get(job.id) is not None
            if role == "read-only":
                with pytest.raises(GraphQLClientGraphQLMultiError, match="lacks the permission 'model:create'"):
                    ask(client, outputModelKey="other")
    assert seen == {"platform-admin": True, "read-only": False}


def test_an_import_ends_though_the_database_was_away_when_it_did(
    sdk: Adaptive, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, left = "harmonia.server.services.jobs", iter(range(2))

    async def away(*told: Any) -> None:
        if next(left, None) is not None:
            raise OperationalError("SELECT", {}, Exception("the server closed the connection"))
        await announce_job(*told)

    monkeypatch.setattr(f"{module}.imports.announce_job", away)
    monkeypatch.setattr(f"{module}.claims._AGAIN_S", 0.05)
    done = ended(sdk, ask(sdk))
    assert (done.status.value, done.error, next(left, None)) == ("COMPLETED", None, None)


def test_one_file_of_several_is_imported_with_our_sdk(plane: Plane, hub: Hub, smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / smollm2.name).symlink_to(smollm2)
    (folder / "other-Q8_0.gguf").write_bytes(b"GGUF")
    hub.models["acme/smol"] = folder
    with OurSdk(base_url=plane.url, api_key=plane.api_key) as client:
        job = client.models.add_hf_model(f"acme/smol/{smollm2.name}", "Smol")
        told: list[float] = []
        done = client.jobs.wait(job, on_progress=lambda now: told.append(now.progress))
        assert (done.status, done.error) == ("COMPLETED", None)
        assert told == sorted(told)
        model = client.models.get("smol")
        assert (model.family, model.size > 100_000_000) == ("llama", True)


def test_the_command_follows_an_import_to_its_end(
    plane: Plane, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens[BASE] = TOKEN
    monkeypatch.setenv("HARMONIA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ADAPTIVE_BASE_URL", plane.url)
    monkeypatch.setenv("ADAPTIVE_API_KEY", plane.api_key)
    done = CliRunner().invoke(app, ["model", "import", BASE, "--follow"], env={"HF_TOKEN": TOKEN})
    assert done.exit_code == 0, done.output
    assert str(uuid.UUID(done.stdout.strip())) == done.stdout.strip()
    assert "completed 100%" in done.stderr
    wrong = CliRunner().invoke(app, ["model", "import", "a/nothing", "-f", "--key", "other"])
    assert (wrong.exit_code, "has no model 'a/nothing'" in wrong.stderr.replace("\n", " ")) == (1, True), wrong.output


async def test_names_of_the_hub_can_be_given_at_the_start(
    hub: Hub, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens[BASE] = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    services = Services(config(tmp_path, hub), database)
    await services.people.bootstrap(ADMIN)
    await services.start()
    told: list[str] = []
    try:
        for _ in range(2):
            assert await first_models.deploy(services, first_models.found([BASE]), told.append) == ["qwen3-0.6b"]
        assert told[0] == f"fetching {BASE}: 0 %"
        assert told[-1] == "qwen3-0.6b is online"
        assert len(hub.fetched("model.safetensors")) == 1
        with pytest.raises(UnavailableError, match="has no model 'a/nothing'"):
            await first_models.deploy(services, first_models.found(["a/nothing"]), told.append)
    finally:
        await services.close()
    for wrong in ("./nowhere", "nowhere.gguf", "nowhere", "models/nowhere.gguf", "/a/b"):
        with pytest.raises(InvalidRequestError, match="does not exist"):
            first_models.found([wrong])
