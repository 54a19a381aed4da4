"""Which model of a project answers a request, and keeping what it answered."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import InvalidRequestError, UnavailableError, UnknownModelError
from harmonia.router import Router
from harmonia.router.router import LOADING_RETRY_S
from harmonia.server.db.database import Database
from harmonia.server.db.models import Model, ModelService
from harmonia.server.services.abtests.abtests import ABTests
from harmonia.server.services.access import ProjectAccess, by_id_or_key
from harmonia.server.services.models.models import EXTERNAL


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model that answers."""

    access: ProjectAccess
    service: ModelService
    model: Model
    campaign_id: uuid.UUID | None = None
    """The A/B test that chose it."""

    @property
    def name(self) -> str:
        """As callers name it."""
        return f"{self.access.project_key}/{self.service.key}"


class Inference:
    """From the names that requests give to models that answer."""

    def __init__(self, database: Database, router: Router, abtests: ABTests) -> None:
        self._database = database
        self._router = router
        self._abtests = abtests

    async def choose(self, access: ProjectAccess, model: str | None, ab_campaign: str | None = None) -> Chosen:
        """The model of that id or key; without one an A/B test's, or the project's default.

        ab_campaign: the A/B test to take part in. A project without a default answers with its only model that is
        switched on. Errors: UnknownModelError; UnavailableError for a model that is switched off, loading or broken.
        """
        campaign_id = None
        if model is not None and ab_campaign is not None:
            raise InvalidRequestError("ab_campaign: name a model or an A/B test, not both", field="ab_campaign")
        if model is None:
            draw = await self._abtests.draw(access.project_id, ab_campaign)
            if draw is not None:
                model, campaign_id = draw.model_key, draw.campaign_id
        async with self._database.read() as session:
            found = await (_default(session, access) if model is None else _named(session, access, model))
        chosen = Chosen(access, *found, campaign_id)
        self._require_online(chosen)
        return chosen

    def _require_online(self, chosen: Chosen) -> None:
        model = chosen.model
        if not chosen.service.desired_online:
            raise UnavailableError(f"{chosen.name} is switched off; deploy it to switch it on", retry_after_s=60)
        if model.kind == EXTERNAL or self._router.serves(model.key):
            return
        if model.online == "ERROR":
            raise UnavailableError(f"{chosen.name} cannot be served: {model.error}", retry_after_s=60)
        raise UnavailableError(f"{chosen.name} is still loading", retry_after_s=LOADING_RETRY_S)


async def _named(session: AsyncSession, access: ProjectAccess, model: str) -> tuple[ModelService, Model]:
    named = or_(by_id_or_key(ModelService.id, ModelService.key, model), by_id_or_key(Model.id, Model.key, model))
    row = (await session.execute(_IN_PROJECT.where(ModelService.project_id == access.project_id, named))).first()
    if row is None:
        raise UnknownModelError(f"project {access.project_key!r} has no model {model!r}", field="model")
    return row[0], row[1]


async def _default(session: AsyncSession, access: ProjectAccess) -> tuple[ModelService, Model]:
    usable = or_(ModelService.is_default, ModelService.desired_online)
    query = _IN_PROJECT.where(ModelService.project_id == access.project_id, usable)
    rows = (await session.execute(query.order_by(ModelService.is_default.desc()).limit(2))).all()
    if rows and (rows[0][0].is_default or len(rows) == 1):
        return rows[0][0], rows[0][1]
    key = access.project_key
    what = "several models and no default" if rows else "no model that is switched on"
    raise UnknownModelError(
        f"project {key!r} has {what}; name one as {key}/MODEL, or make one the default", field="model"
    )


_IN_PROJECT = (
    select(ModelService, Model).join(Model, Model.id == ModelService.model_id).where(ModelService.deleted_at.is_(None))
)
