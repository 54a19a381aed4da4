"""A/B tests: who takes part, when they end, and what they report."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from sqlalchemy import select

from harmonia.errors import EntityNotFoundError
from harmonia.server.db.database import Database
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.people import AuditEntry
from harmonia.server.services.abtests.abtests import ABTests, CampaignInfo, NewCampaign, make_default
from harmonia.server.services.abtests.report import COMPARISON, MIN_SCORES, Report
from harmonia.server.services.access import Access, Caller
from harmonia.server.services.interactions.feedback import Feedback, NewComparison, NewScore
from harmonia.server.services.interactions.interaction import Interaction
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.metrics import BOOL, LOWER_IS_BETTER, SCALAR, MetricsRegistry, NewMetric
from harmonia.server.services.people.people import People
from harmonia.server.services.people.projects import NewProject, Projects
from tests.integration.control.conftest import ADMIN, on_both

ASK = [{"role": "user", "content": "ask"}]


@dataclass
class Lab:
    """A project with three models, `a`, `b` and `c`, of which `a` is the default."""

    database: Database
    caller: Caller
    project_id: uuid.UUID
    services: dict[str, ModelService]
    writer: InteractionWriter
    abtests: ABTests
    feedback: Feedback
    metrics: MetricsRegistry

    async def metric(self, key: str, kind: str = SCALAR, **more: str) -> None:
        await self.metrics.create(self.caller, "lab", NewMetric(name=key, kind=kind, **more))

    async def begin(self, key: str, metric: str, models: str = "ab", **more: object) -> CampaignInfo:
        given: dict[str, object] = {"traffic_split": 1.0, "auto_deploy": False, **more}
        new = NewCampaign(key=key, project="lab", metric=metric, models=list(models), **given)  # type: ignore[arg-type]
        return await self.abtests.create(self.caller, new)

    async def answer(
        self, model: str, campaign: CampaignInfo | None = None, timings: dict[str, float] | None = None
    ) -> uuid.UUID:
        service = self.services[model]
        return await self.writer.record(
            Interaction(
                project_id=self.project_id,
                messages=ASK,
                completion=model,
                timings=timings,
                model_key=model,
                model_service_id=service.id,
                model_id=service.model_id,
                ab_campaign_id=None if campaign is None else campaign.row.id,
            )
        )

    async def score(self, model: str, campaign: CampaignInfo | None, metric: str, value: object) -> None:
        completion = await self.answer(model, campaign)
        await self.feedback.score(self.caller, completion, NewScore(metric=metric, value=value))

    async def prefer(self, better: str, worse: str, metric: str, tie: str | None = None) -> None:
        preferred, other = await self.answer(better), await self.answer(worse)
        new = NewComparison(metric=metric, preferred=preferred, other=other, tie=tie)
        await self.feedback.compare(self.caller, "lab", new)

    async def now(self, key: str) -> tuple[CampaignInfo, Report]:
        info = await self.abtests.find(self.caller, key)
        assert info is not None
        return info, await self.abtests.report(info)

    async def default(self) -> str:
        async with self.database.read() as session:
            query = select(ModelService.key).where(ModelService.is_default)
            return str((await session.execute(query)).scalar_one())


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
async def lab(database: Database) -> AsyncIterator[Lab]:
    api_key = await People(database).bootstrap(ADMIN)
    assert api_key is not None
    caller = await Access(database).caller(api_key)
    project = await Projects(database).create(caller, NewProject("Lab", "lab"))
    services = {}
    async with database.begin() as session:
        for key in "abc":
            model = Model(key=key, name=key, kind="external", external={"provider": "OPEN_AI"})
            session.add(model)
            await session.flush()
            service = ModelService(
                project_id=project.id, model_id=model.id, key=key, name=key, is_default=key == "a", desired_online=True
            )
            session.add(service)
            services[key] = service
    abtests = ABTests(database, make_default, random.Random(7))
    writer = InteractionWriter(database, measured=abtests.measured)
    writer.start()
    feedback = Feedback(database, writer, abtests)
    yield Lab(database, caller, project.id, services, writer, abtests, feedback, MetricsRegistry(database))
    await writer.close()


async def test_the_share_is_drawn_and_then_the_models_equally(lab: Lab) -> None:
    await lab.metric("stars")
    assert await lab.abtests.draw(lab.project_id) is None
    campaign = await lab.begin("split", "stars", traffic_split=0.2)
    draws = Counter([await lab.abtests.draw(lab.project_id) for _ in range(1000)])
    by_model = {draw.model_key: count for draw, count in draws.items() if draw is not None}
    assert {draw.campaign_id for draw in draws if draw is not None} == {campaign.row.id}
    assert by_model.keys() == {"a", "b"}
    assert all(70 <= count <= 130 for count in by_model.values())
    forced = [await lab.abtests.draw(lab.project_id, "split") for _ in range(50)]
    assert all(forced)
    assert await lab.abtests.draw(lab.project_id, str(campaign.row.id)) is not None
    with pytest.raises(EntityNotFoundError, match="'other' does not exist here"):
        await lab.abtests.draw(lab.project_id, "other")
    with pytest.raises(EntityNotFoundError):
        await lab.abtests.draw(uuid.uuid4(), "split")
    async with lab.database.begin() as session:
        (await session.get_one(ModelService, lab.services["a"].id)).desired_online = False
    left = [await lab.abtests.draw(lab.project_id, "split") for _ in range(20)]
    assert {draw.model_key for draw in left if draw is not None} == {"b"}
    await lab.abtests.cancel(lab.caller, "split")
    assert await lab.abtests.draw(lab.project_id) is None
    assert await lab.abtests.draw(lab.project_id, "split") is None


@on_both
async def test_a_clear_difference_ends_the_test_and_the_winner_is_deployed(lab: Lab) -> None:
    await lab.metric("seconds", scoring_type=LOWER_IS_BETTER)
    await lab.metric("stars")
    campaign = await lab.begin("speed", "seconds", auto_deploy=True)
    for number in range(MIN_SCORES - 1):
        await lab.score("a", campaign, "seconds", 10 + number % 3)
        await lab.score("b", campaign, "seconds", 8 + number % 3)
    await lab.score("b", campaign, "stars", 5)  # another metric
    await lab.score("b", None, "seconds", 0)  # somebody who named the model
    info, report = await lab.now("speed")
    assert (info.row.status, info.row.num_scores, info.row.has_enough) == ("WARMUP", 2 * MIN_SCORES - 2, False)
    assert report.p_value is not None and report.p_value < 0.05
    await lab.score("a", campaign, "seconds", 10)
    assert (await lab.now("speed"))[0].row.status == "WARMUP"
    await lab.score("b", campaign, "seconds", 8)
    info, report = await lab.now("speed")
    assert (info.row.status, info.row.has_enough) == ("DONE", True)
    assert info.row.ended_at is not None
    assert info.row.winner_id == lab.services["b"].id == report.best
    assert await lab.default() == "b"
    assert [variant.scores for variant in report.variants] == [MIN_SCORES, MIN_SCORES]
    interval = report.variants[1].interval
    assert interval is not None and interval.start < interval.middle < interval.end < 10
    await lab.score("a", campaign, "seconds", 1)  # late
    assert (await lab.now("speed"))[0].row.num_scores == 2 * MIN_SCORES
    async with lab.database.read() as session:
        query = select(AuditEntry.details).where(AuditEntry.action == "ab_test.end")
        (details,) = (await session.execute(query)).scalars().all()
        assert (details["winner"], details["deployed"]) == ("b", True)


async def test_a_test_by_what_the_server_measures_ends_like_others(lab: Lab) -> None:
    await lab.answer("a", timings={"ttft_ms": 1.0, "total_ms": 2.0})  # with which the metrics come
    await until(lambda: lab.writer.written == 1)
    campaign = await lab.begin("fast", "ttft", auto_deploy=True)
    other = await lab.begin("brief", "completion_tokens")
    for number in range(MIN_SCORES + 1):
        await lab.answer("a", campaign, {"ttft_ms": 20.0 + number % 3, "total_ms": 5.0})
        await lab.answer("b", campaign, {"ttft_ms": 10.0 + number % 3, "total_ms": 50.0})
    await lab.answer("b", campaign)  # not measured
    await until(lambda: lab.writer.written == 2 * MIN_SCORES + 4)
    await lab.writer.settled()  # what it tells of comes after what it has written
    info, report = await lab.now("fast")
    assert (info.row.status, info.row.winner_id) == ("DONE", lab.services["b"].id)
    assert info.row.num_scores >= 2 * MIN_SCORES
    assert [variant.scores for variant in report.variants] == [MIN_SCORES + 1] * 2
    assert await lab.default() == "b"
    assert (await lab.now("brief"))[0].row.num_scores == other.row.num_scores == 0


async def test_no_difference_ends_nothing(lab: Lab) -> None:
    await lab.metric("good", BOOL)
    campaign = await lab.begin("same", "good", "abc")
    for number in range(MIN_SCORES):
        for model in "abc":
            await lab.score(model, campaign, "good", number % 2 == 0)
    info, report = await lab.now("same")
    assert (info.row.status, info.row.has_enough, report.p_value) == ("IN_PROGRESS", True, 1.0)
    assert [variant.mean for variant in report.variants] == [0.5, 0.5, 0.5]
    assert await lab.default() == "a"


@on_both
async def test_preferences_are_counted_for_each_pair(lab: Lab) -> None:
    await lab.metric("taste")
    await lab.begin("taste-test", "taste", score_type=COMPARISON)
    campaign, _ = await lab.now("taste-test")
    for number in range(MIN_SCORES - 4):
        await lab.prefer(*(("b", "a") if number % 4 else ("a", "b")), "taste")
    for tie in ("good", "bad", "bad"):
        await lab.prefer("a", "b", "taste", tie)
    await lab.prefer("c", "a", "taste")  # takes no part
    await lab.score("a", campaign, "taste", 100)  # of the other kind
    info, report = await lab.now("taste-test")
    assert (info.row.status, info.row.num_scores) == ("WARMUP", MIN_SCORES - 1)
    duel = report.variants[0].duels[lab.services["b"].id]
    assert (duel.scores, duel.wins, duel.losses, duel.ties_good, duel.ties_bad) == (29, 7, 19, 1, 2)
    assert report.variants[1].mean == pytest.approx(19 / 26)
    await lab.prefer("b", "a", "taste")
    info, report = await lab.now("taste-test")
    assert (info.row.status, info.row.winner_id) == ("DONE", lab.services["b"].id)
    assert await lab.default() == "a"  # nobody asked for more


def test_through_the_published_sdk(adaptive: Adaptive) -> None:
    adaptive.projects.create("lab", "Lab")
    adaptive.set_default_project("lab")
    for name in ("one", "two"):
        adaptive.models.add_external(name=name, external_model_id=name, api_key="secret", provider="open_ai")
        adaptive.models.add_to_project(name, "lab")
    adaptive.feedback.register_key("lab", "stars", "scalar")
    made = adaptive.ab_tests.create("first", "stars", ["one", "two"], traffic_split=0.5)
    assert (made.key, made.status.value) == ("first", "WARMUP")
    (listed,) = adaptive.ab_tests.list(active=True)
    assert (listed.key, listed.traffic_split, listed.score_type.value) == ("first", 0.5, "DIRECT")
    assert [model.key for model in listed.models] == ["one", "two"]
    assert listed.metric is not None and listed.metric.key == "stars"
    assert listed.project is not None and listed.project.key == "lab"
    assert (listed.scores, listed.has_enough_scores, listed.end_date) == (0, False, None)
    found = adaptive.ab_tests.get("first")
    assert found is not None
    assert found.report.p_value is None
    assert [(item.variant.key, item.scores, item.interval) for item in found.report.variants] == [
        ("one", 0, None),
        ("two", 0, None),
    ]
    for told, arguments in (
        ("'first' is taken", ("first", "stars", ["one", "two"])),
        ("two or more different models", ("second", "stars", ["one"])),
        ("two or more different models", ("second", "stars", ["one", "one"])),
        ("a share from 0 to 1, got 10", ("second", "stars", ["one", "two"], 10)),
        ("hint|metric|feedback", ("second", "nothing", ["one", "two"])),
    ):
        with pytest.raises(Exception, match=told):
            adaptive.ab_tests.create(*arguments)
    assert adaptive.ab_tests.cancel("first")
    assert adaptive.ab_tests.list(active=True) == []
    assert [item.status.value for item in adaptive.ab_tests.list(status="cancelled")] == ["CANCELLED"]
    with pytest.raises(GraphQLClientGraphQLMultiError, match="has ended already"):
        adaptive.ab_tests.cancel("first")
    assert adaptive.ab_tests.get("nowhere") is None
