"""What the published client does wrong, and `harmonia.sdk` must not: one test for each defect that users of it know."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from harmonia.config.control import ControlConfig
from harmonia.errors import (
    EntityNotFoundError,
    HarmoniaError,
    InvalidRequestError,
    PermissionDeniedError,
    UnavailableError,
    UnknownModelError,
)
from harmonia.sdk import Adaptive, AsyncAdaptive
from harmonia.server.db.database import Database
from harmonia.server.db.metrics import DirectScore
from tests.integration.control.conftest import Plane

P, OTHER = "tickets", "other"
ASKED = [{"role": "user", "content": "a"}]
RECIPE = """
from harmonia.client.recipe import RecipeContext, recipe_main

@recipe_main
async def main(ctx: RecipeContext) -> None:
    pass
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    config = ControlConfig(data_dir=tmp_path_factory.mktemp("plane"), external_models={"allow_private": True})
    with Plane(config) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(plane: Plane) -> Iterator[Adaptive]:
    """The admin, of two projects with two models of somebody else's that nobody will ask."""
    with Adaptive(plane.url, plane.api_key, P) as admin:
        for project in (P, OTHER):
            admin.projects.create(project)
            admin.metrics.create("stars", project=project)
        for name in ("one", "two"):
            admin.models.add_external(name, name, "secret", "open_ai", endpoint="http://127.0.0.1:9/v1")
        yield admin


@pytest.fixture
async def unwaited(plane: Plane, sdk: Adaptive) -> AsyncIterator[AsyncAdaptive]:
    async with AsyncAdaptive(plane.url, plane.api_key, P) as admin:
        yield admin


def test_jobs_are_listed_with_what_they_are(sdk: Adaptive, tmp_path: Path) -> None:
    (tmp_path / "lesson.py").write_text(RECIPE)
    sdk.recipes.upload(tmp_path / "lesson.py")
    job = sdk.jobs.run("lesson", 0)
    assert [found.id for found in sdk.jobs.list(P).nodes] == [job.id]
    assert [found.id for found in sdk.jobs.list(filter={"kind": ["CUSTOM"]}).nodes] == [job.id]
    assert sdk.jobs.list(filter={"kind": ["INTERACTIVE"]}).nodes == []
    with pytest.raises(InvalidRequestError, match="TRAINING"):
        sdk.jobs.list(filter={"kind": ["TRAINING"]})  # type: ignore[list-item]
    sdk.jobs.cancel(job.id)


def test_ties_arrive(plane: Plane, sdk: Adaptive) -> None:
    answers = [sdk.interactions.create(ASKED, text).completion_id for text in "bc"]
    sdk.feedback.log_preference("stars", *answers, tied="bad")
    kept = sdk.interactions.get(answers[0])
    assert kept is not None
    assert len(kept.comparison_scores) == 1


def test_the_default_of_a_project_is_that_of_the_project_that_was_named(sdk: Adaptive) -> None:
    assert sdk.models.deploy("one", make_default=True, project=OTHER).is_default
    assert [(item.key, item.is_default) for item in sdk.projects.models(OTHER)] == [("one", True)]
    assert sdk.projects.models(P) == []


async def test_models_come_and_go_in_both_clients_alike(sdk: Adaptive, unwaited: AsyncAdaptive) -> None:
    await unwaited.models.add_to_project("two")
    await unwaited.models.attach("two")
    assert [item.key for item in sdk.projects.models(P)] == ["two"]
    assert await unwaited.models.detach("two")
    assert sdk.projects.models(P) == []
    public = [{name for name in dir(client.models) if not name.startswith("_")} for client in (sdk, unwaited)]
    assert public[0] == public[1]


def test_a_provider_that_is_not_there_and_its_address_that_is(sdk: Adaptive) -> None:
    with pytest.raises(InvalidRequestError, match="open_ai, legacy_open_ai, google, anthropic"):
        sdk.models.add_external("three", "three", "secret", "azure")  # type: ignore[arg-type]
    sdk.models.deploy("one", project=OTHER)
    with pytest.raises(UnavailableError, match="one"):
        sdk.chat.create(ASKED, model="one", project=OTHER)


def test_an_upload_can_be_given_up(plane: Plane, sdk: Adaptive) -> None:
    headers = {"authorization": f"Bearer {plane.api_key}"}
    with httpx.Client(base_url=f"{plane.url}/api/v1/upload", headers=headers) as http:
        session = http.post("/init", json={"total_parts_count": 2}).json()["session_id"]
        sdk.datasets.abort_upload(session)
        assert http.post("/status", json={"session_id": session}).status_code == 404


def test_refusals_are_exceptions_of_their_kind_streamed_or_not(plane: Plane, sdk: Adaptive) -> None:
    guest_key = sdk.users.create_service_account("guest", [("default", "annotator")]).generated_api_key
    with Adaptive(plane.url, guest_key, P) as guest:
        for stream in (False, True):
            with pytest.raises(PermissionDeniedError, match="project:infer"):
                guest.chat.create(ASKED, stream=stream)
    for stream in (False, True):
        with pytest.raises(UnknownModelError, match="nothing"):
            sdk.chat.create(ASKED, model="nothing", stream=stream)
    with pytest.raises(EntityNotFoundError, match="moon"):
        sdk.interactions.create(ASKED, "b", project="moon")
    with pytest.raises(EntityNotFoundError, match="Metric 'moon'"):
        sdk.feedback.log_outcome(1, sdk.interactions.create(ASKED, "b").session_id, "moon")


def test_filters_are_sent_or_refused(sdk: Adaptive) -> None:
    made = [sdk.interactions.create(ASKED, text) for text in ("good", "poor")]
    for done, value in zip(made, (5, 1), strict=True):
        sdk.feedback.log_metric(value, done.completion_id, "stars")
    found = sdk.interactions.list(filters={"scores": [{"metric": "stars", "gte": 4}]})
    assert [item.id for item in found.nodes] == [made[0].completion_id]
    sdk.feedback.log_preference("stars", made[0].completion_id, made[1].completion_id)
    compared = {item.id for item in sdk.interactions.list(filters={"comparisons": [{"metric": "stars"}]}).nodes}
    assert compared >= {done.completion_id for done in made}
    with pytest.raises(InvalidRequestError, match="'user_id'"):
        sdk.interactions.list(filters={"user_id": "ada"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InvalidRequestError, match="'kind'"):
        sdk.models.list(filter={"kind": "generation"})  # type: ignore[typeddict-unknown-key]


async def test_whoever_gave_a_score_is_kept(plane: Plane, sdk: Adaptive) -> None:
    giver = sdk.users.create("giver@example.com", "Giver", [("default", "annotator")])
    done = sdk.interactions.create(ASKED, "b")
    scored = sdk.feedback.log_metric(1, done.completion_id, "stars", user=giver.id)
    database = Database(plane.config.database_address)
    async with database.read() as session:
        kept = await session.get_one(DirectScore, uuid.UUID(scored.feedback_id))
    await database.close()
    assert kept.user == giver.id


async def test_both_clients_make_the_same_things(sdk: Adaptive, unwaited: AsyncAdaptive, tmp_path: Path) -> None:
    graders = [
        sdk.graders.create.binary_judge(key="first", criteria="polite", judge_model="one"),
        await unwaited.graders.create.binary_judge(key="second", criteria="polite", judge_model="one"),
    ]
    assert [grader.metric.kind for grader in graders] == ["BOOL", "BOOL"]
    done = await unwaited.interactions.create(ASKED, "b", created_at="2026-01-02T03:04:05Z")
    kept = sdk.interactions.get(done.completion_id)
    assert kept is not None
    assert kept.created_at == 1767323045000
    (tmp_path / "labelled.py").write_text(RECIPE)
    recipe = await unwaited.recipes.upload(tmp_path / "labelled.py", labels={"level": "easy"})
    assert [(label.key, label.value) for label in recipe.labels] == [("level", "easy")]


def test_every_error_is_one_to_catch() -> None:
    assert issubclass(UnavailableError, HarmoniaError)
    with pytest.raises(HarmoniaError), Adaptive("http://127.0.0.1:1", "hk-x", retries=0) as nobody:
        nobody.projects.list()
