"""A/B tests: which model answers a request that names none, and which one proves better."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import Select, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.abtests import AbCampaign, AbVariant
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.metrics import Metric
from harmonia.server.db.models import ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.abtests.report import COMPARISON, DIRECT, Report, report
from harmonia.server.services.access import Caller, by_id_or_key, require_in_project, visible_projects
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_key
from harmonia.server.services.metrics import MetricInfo, metric_infos, metric_named
from harmonia.server.services.models.deployments import named_service

WARMUP, IN_PROGRESS, DONE, CANCELLED = "WARMUP", "IN_PROGRESS", "DONE", "CANCELLED"
RUNNING = (WARMUP, IN_PROGRESS)
_LOOK_FACTOR = 2
"""Once a decision is possible it is sought again at so many times the scores: who looks at every score finds by chance,
sooner or later, a difference that is none (in 300 scores of each of two equal models three times out of ten)."""

Deploy = Callable[[AsyncSession, uuid.UUID], Awaitable[None]]
"""Makes a model service the default of its project, inside a transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCampaign:
    """A test to begin. models: two or more of the project, by id or key."""

    key: str
    project: str
    metric: str
    models: Sequence[str]
    traffic_split: float
    auto_deploy: bool
    score_type: str = DIRECT
    name: str | None = None


@dataclass(frozen=True, slots=True)
class CampaignWish:
    """Which tests are wanted; None: never mind. is_active: still running."""

    is_active: bool | None = None
    status: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class CampaignInfo:
    """A test, its project and metric, and the models that take part."""

    row: AbCampaign
    project: Project
    metric: MetricInfo
    services: list[ModelService]


class Draw(NamedTuple):
    """The test that a request takes part in, and the model that answers it."""

    campaign_id: uuid.UUID
    model_key: str


class ABTests:
    """Everything about A/B tests."""

    def __init__(self, database: Database, deploy: Deploy, chance: random.Random | None = None) -> None:
        """chance: where draws come from; None: a source of its own."""
        self._database = database
        self._deploy = deploy
        self._chance = chance or random.Random()

    async def create(self, caller: Caller, new: NewCampaign) -> CampaignInfo:
        """Begin a test; needs `project:update`."""
        if not 0 <= new.traffic_split <= 1:
            raise InvalidRequestError(
                f"traffic_split is a share from 0 to 1, got {new.traffic_split:g}", field="trafficSplit"
            )
        key, name = checked_key(new.key), new.name or new.key
        if len(name) > MAX_KEY:
            raise InvalidRequestError(f"a name has at most {MAX_KEY} characters, got {len(name)}", field="name")
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, new.project, "project:update")
            if (await session.execute(select(AbCampaign.id).where(AbCampaign.key == key))).first() is not None:
                raise InvalidRequestError(f"the key {key!r} is taken by another A/B test; choose another", field="key")
            metric = await metric_named(session, access.project_id, new.metric)
            services = [(await named_service(session, access.project_id, model)).service for model in new.models]
            if len({service.id for service in services}) != len(services) or len(services) < 2:
                raise InvalidRequestError(
                    f"an A/B test compares two or more different models, got {list(new.models)}", field="modelServices"
                )
            row = AbCampaign(
                project_id=access.project_id,
                metric_id=metric.id,
                key=key,
                name=name,
                score_type=new.score_type,
                traffic_split=new.traffic_split,
                auto_deploy=new.auto_deploy,
            )
            session.add(row)
            await session.flush()
            for place, service in enumerate(services):
                session.add(AbVariant(campaign_id=row.id, model_service_id=service.id, place=place))
            record(session, caller, "ab_test.create", f"ab_test/{key}", models=[item.key for item in services])
            await session.flush()
            return await _info(session, row)

    async def cancel(self, caller: Caller, campaign: str) -> AbCampaign:
        """End a test without a winner; needs `project:update` in its project."""
        async with self._database.begin() as session:
            row = (await session.execute(_named(campaign))).scalar_one_or_none()
            if row is None:
                raise EntityNotFoundError(f"A/B test {campaign!r} does not exist", entity="ab_test")
            await require_in_project(session, caller, str(row.project_id), "project:update")
            if row.status not in RUNNING:
                raise InvalidRequestError(f"the A/B test {row.key!r} has ended already ({row.status})")
            row.status, row.ended_at = CANCELLED, now_ms()
            record(session, caller, "ab_test.cancel", f"ab_test/{row.key}")
            return row

    async def all(self, caller: Caller, wish: CampaignWish) -> list[CampaignInfo]:
        """Those of the projects that the caller may read, newest first."""
        query = select(AbCampaign).where(AbCampaign.project_id.in_(visible_projects(caller)))
        if wish.is_active is not None:
            running = AbCampaign.status.in_(RUNNING)
            query = query.where(running if wish.is_active else ~running)
        if wish.status is not None:
            query = query.where(AbCampaign.status == wish.status)
        if wish.project is not None:
            named = select(Project.id).where(by_id_or_key(Project.id, Project.key, wish.project))
            query = query.where(AbCampaign.project_id.in_(named))
        async with self._database.read() as session:
            rows = (await session.execute(query.order_by(AbCampaign.created_at.desc(), AbCampaign.key))).scalars()
            return [await _info(session, row) for row in rows.all()]

    async def find(self, caller: Caller, campaign: str) -> CampaignInfo | None:
        """One by id or key; None if there is none that the caller may see."""
        async with self._database.read() as session:
            query = _named(campaign).where(AbCampaign.project_id.in_(visible_projects(caller)))
            row = (await session.execute(query)).scalar_one_or_none()
            return None if row is None else await _info(session, row)

    async def report(self, info: CampaignInfo) -> Report:
        """What the scores of a test say; whoever calls has found the test for the caller."""
        async with self._database.read() as session:
            return await report(session, info.row, info.metric.row, [service.id for service in info.services])

    # ------------------------------------------------------------------------------------------------- requests

    async def draw(self, project_id: uuid.UUID, ab_campaign: str | None = None) -> Draw | None:
        """The test that a request without a model takes part in, and its model; None: the project's default answers.

        ab_campaign: the test by id or key that the request asks for, past its share of the traffic. A test that has
        ended draws no more, and models that are switched off are not drawn. `EntityNotFoundError` for a test that never
        was in the project.
        """
        async with self._database.read() as session:
            query = (
                select(AbCampaign, ModelService)
                .join(AbVariant, AbVariant.campaign_id == AbCampaign.id)
                .join(ModelService, ModelService.id == AbVariant.model_service_id)
                .where(AbCampaign.project_id == project_id)
                .order_by(AbCampaign.created_at, AbCampaign.key, AbVariant.place)
            )
            if ab_campaign is None:
                query = query.where(AbCampaign.status.in_(RUNNING))
            else:
                query = query.where(by_id_or_key(AbCampaign.id, AbCampaign.key, ab_campaign))
            rows = (await session.execute(query)).all()
        if ab_campaign is not None and not rows:
            raise EntityNotFoundError(f"A/B test {ab_campaign!r} does not exist here", entity="ab_test")
        for campaign, group in groupby(rows, key=lambda row: row[0]):
            keys = [service.key for _, service in group if service.desired_online and service.deleted_at is None]
            takes_part = ab_campaign is not None or self._chance.random() < campaign.traffic_split
            if keys and takes_part and campaign.status in RUNNING:
                return Draw(campaign.id, self._chance.choice(keys))
        return None

    # ------------------------------------------------------------------------------------------------- scores

    async def measured(self, numbers: Mapping[tuple[uuid.UUID, uuid.UUID], int]) -> None:
        """Completions that tests chose the models for were measured by this server: how many, by test and metric."""
        async with self._database.begin() as session:
            for (campaign_id, metric_id), number in sorted(numbers.items()):  # in one order: rows are locked
                await self.scored(session, campaign_id, metric_id, number)

    async def scored(
        self, session: AsyncSession, campaign_id: uuid.UUID, metric_id: uuid.UUID, number: int = 1
    ) -> None:
        """Completions that a test chose the model for got scores. number: how many."""
        wanted = (AbCampaign.id == campaign_id, AbCampaign.metric_id == metric_id, AbCampaign.score_type == DIRECT)
        found = await session.execute(select(AbCampaign.id).where(*wanted, AbCampaign.status.in_(RUNNING)))
        for found_id in found.scalars().all():
            await self._count(session, found_id, number)

    async def compared(self, session: AsyncSession, metric_id: uuid.UUID, *services: uuid.UUID | None) -> None:
        """Completions of two models were compared."""
        if None in services or len(set(services)) < 2:
            return
        query = select(AbCampaign.id).where(
            AbCampaign.metric_id == metric_id,
            AbCampaign.score_type == COMPARISON,
            AbCampaign.status.in_(RUNNING),
            *(
                AbCampaign.id.in_(select(AbVariant.campaign_id).where(AbVariant.model_service_id == service))
                for service in services
            ),
        )
        for found_id in (await session.execute(query)).scalars().all():
            await self._count(session, found_id)

    async def _count(self, session: AsyncSession, campaign_id: uuid.UUID, number: int = 1) -> None:
        """Some scores more; ends the test if it decides it. The row is locked from here to the transaction's end."""
        await session.execute(
            update(AbCampaign).where(AbCampaign.id == campaign_id).values(num_scores=AbCampaign.num_scores + number)
        )
        row = await session.get_one(AbCampaign, campaign_id, populate_existing=True)
        if row.status not in RUNNING or row.num_scores < row.next_look:
            return
        info = await _info(session, row)
        found = await report(session, row, info.metric.row, [service.id for service in info.services])
        row.has_enough = found.has_enough
        row.next_look = _LOOK_FACTOR * row.num_scores if found.has_enough else row.num_scores + 1
        row.status = IN_PROGRESS if found.has_enough else WARMUP
        if found.is_decided and found.best is not None:
            await self._end(session, row, found.best, found.p_value)

    async def _end(self, session: AsyncSession, row: AbCampaign, winner: uuid.UUID, p_value: float | None) -> None:
        row.status, row.ended_at, row.winner_id = DONE, now_ms(), winner
        service = await session.get_one(ModelService, winner)
        deployed = row.auto_deploy and service.deleted_at is None
        if deployed:
            await self._deploy(session, winner)
        record(session, None, "ab_test.end", f"ab_test/{row.key}", winner=service.key, p=p_value, deployed=deployed)


async def make_default(session: AsyncSession, service_id: uuid.UUID) -> None:
    """Let a model answer the requests that name only its project."""
    service = await session.get_one(ModelService, service_id)
    others = update(ModelService).where(ModelService.project_id == service.project_id, ModelService.is_default)
    await session.execute(others.values(is_default=False))
    service.is_default = True


def _named(campaign: str) -> Select[AbCampaign]:
    return select(AbCampaign).where(by_id_or_key(AbCampaign.id, AbCampaign.key, campaign))


async def _info(session: AsyncSession, row: AbCampaign) -> CampaignInfo:
    services = (
        select(ModelService)
        .join(AbVariant, AbVariant.model_service_id == ModelService.id)
        .where(AbVariant.campaign_id == row.id)
        .order_by(AbVariant.place)
    )
    return CampaignInfo(
        row,
        await session.get_one(Project, row.project_id),
        (await metric_infos(session, Metric.id == row.metric_id))[0],
        list((await session.execute(services)).scalars()),
    )
