"""Finding jobs and what they made, through `harmonia.sdk` and by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harmonia.errors import InvalidRequestError, PermissionDeniedError
from harmonia.sdk import Adaptive
from tests.integration.control.asking import data, refusal
from tests.integration.control.laboratory import Laboratory, P, furnished

OPTIONS = """query ($f: JobOptionsInput!) { jobOptions(filter: $f) {
  users { email } recipes { key downloadUrl } projects { key } } }"""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Its one job is called `done`, ran `lesson` for the admin, and made the checkpoint `learn-1`."""
    with furnished(tmp_path_factory.mktemp("plane")) as built:
        yield built


@pytest.fixture
def sdk(laboratory: Laboratory) -> Iterator[Adaptive]:
    with Adaptive(laboratory.plane.url, laboratory.plane.api_key, P) as client:
        yield client


@pytest.mark.parametrize(
    ("query", "jobs", "artifacts"),
    [
        ("DON", ["done"], []),
        ("lesson", ["done"], []),
        ("Admin@example.com", ["done"], []),
        (" learn-", [], ["learn-1"]),
        ("_", [], []),  # no wildcard
        ("'; --", [], []),
    ],
)
def test_words_find_jobs_and_artifacts(sdk: Adaptive, query: str, jobs: list[str], artifacts: list[str]) -> None:
    found = sdk.jobs.search(query)
    assert ([job.name for job in found.jobs], [item.name for item in found.artifacts]) == (jobs, artifacts)


def test_nothing_is_no_search(sdk: Adaptive) -> None:
    with pytest.raises(InvalidRequestError, match="give some characters"):
        sdk.jobs.search("  ")


def test_artifacts_are_listed_by_kind_and_job(laboratory: Laboratory, sdk: Adaptive) -> None:
    (checkpoint,) = sdk.artifacts.list()
    assert (checkpoint.id, checkpoint.kind) == (laboratory.things["checkpoint"], "CHECKPOINT")
    assert sdk.artifacts.list(filter={"kinds": ["MODEL", "DATASET"]}) == []
    job = laboratory.things["job"]
    assert sdk.artifacts.list(filter={"kinds": ["CHECKPOINT"], "job_id": job}) == [checkpoint]
    assert sdk.artifacts.list(filter={"job_id": laboratory.things["model"]}) == []
    assert sdk.artifacts.list(limit=1, offset=1) == []
    for limit, offset in ((0, 0), (1001, 0), (1, -1)):
        with pytest.raises(InvalidRequestError, match=r"limit|offset"):
            sdk.artifacts.list(limit=limit, offset=offset)
    query = f'{{ artifacts(project: "{P}") {{ job {{ id name }} }} }}'
    assert data(laboratory.plane, query) == {"artifacts": [{"job": {"id": job, "name": "done"}}]}


def test_options_name_who_ran_what_where(laboratory: Laboratory) -> None:
    everything = {
        "users": [{"email": "admin@example.com"}],
        "recipes": [{"key": "lesson", "downloadUrl": f"/api/v1/projects/{P}/recipes/lesson/download"}],
        "projects": [{"key": P}],
    }
    for wanted in ({}, {"projectId": P}):
        assert data(laboratory.plane, OPTIONS, {"f": wanted}) == {"jobOptions": everything}
    elsewhere = laboratory.people["elsewhere", "admin"]
    nothing = {"users": [], "recipes": [], "projects": []}
    assert data(laboratory.plane, OPTIONS, {"f": {}}, elsewhere) == {"jobOptions": nothing}
    assert "lacks the permission" in refusal(laboratory.plane, OPTIONS, {"f": {"projectId": P}}, elsewhere)
    with Adaptive(laboratory.plane.url, elsewhere, P) as sdk, pytest.raises(PermissionDeniedError):
        sdk.jobs.search("done")


def test_models_name_their_projects_and_tests(laboratory: Laboratory) -> None:
    query = """query ($f: ProjectFilter!, $c: AbCampaignFilter!) { model(idOrKey: "one") {
      trainingRun { id } sourceCheckpoint { id }
      modelServices(filter: $f) { key abCampaigns(filter: $c) { key } } } }"""
    (service,) = data(laboratory.plane, query, {"f": {}, "c": {}})["model"]["modelServices"]
    assert service == {"key": "one", "abCampaigns": [{"key": "running"}]}
    found = data(laboratory.plane, query, {"f": {}, "c": {"status": "DONE"}})["model"]
    assert found == {
        "trainingRun": None,
        "sourceCheckpoint": None,
        "modelServices": [{"key": "one", "abCampaigns": []}],
    }
    assert data(laboratory.plane, query, {"f": {"isArchived": True}, "c": {}})["model"]["modelServices"] == []
    elsewhere = laboratory.people["elsewhere", "admin"]
    assert data(laboratory.plane, query, {"f": {}, "c": {}}, elsewhere)["model"]["modelServices"] == []
    off = """{ model(idOrKey: "off") { modelServices { abCampaigns { key } } } }"""
    assert data(laboratory.plane, off)["model"]["modelServices"] == [{"abCampaigns": []}]
