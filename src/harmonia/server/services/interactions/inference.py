"""Which model of a project answers a request, and keeping what it answered."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row, Uuid, bindparam, cast, exists, func, or_, select

from harmonia import tracing
from harmonia.errors import InvalidRequestError, UnavailableError, UnknownModelError
from harmonia.router import Router
from harmonia.router.router import LOADING_RETRY_S
from harmonia.server.db.abtests import AbCampaign
from harmonia.server.db.database import Database
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.prompts import SystemPromptTemplate
from harmonia.server.services.abtests.abtests import RUNNING, ABTests
from harmonia.server.services.access import ProjectAccess
from harmonia.server.services.models.models import EXTERNAL


class AskedService(NamedTuple):
    """What answering takes of a `ModelService`'s row."""

    id: uuid.UUID
    key: str
    max_ttft_ms: int | None
    desired_online: bool
    num_draft_steps: int | None


class AskedModel(NamedTuple):
    """What answering takes of a `Model`'s row."""

    id: uuid.UUID
    key: str
    kind: str
    online: str
    error: str | None
    compute: dict[str, Any]
    external: dict[str, Any] | None
    secret: str | None
    num_draft_steps: int | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model that answers."""

    access: ProjectAccess
    service: AskedService
    model: AskedModel
    system_prompt: str | None = None
    """The template with which its chats begin."""
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
        with tracing.span("choose model") as span:
            chosen = await self._chosen(access, model, ab_campaign)
            span.note({"gen_ai.request.model": chosen.name})
        self._require_online(chosen)
        return chosen

    async def _chosen(self, access: ProjectAccess, model: str | None, ab_campaign: str | None) -> Chosen:
        if model is not None and ab_campaign is not None:
            raise InvalidRequestError("ab_campaign: name a model or an A/B test, not both", field="ab_campaign")
        if model is not None:
            return await self._named(access, model)
        row = await self._database.first(_DEFAULT, {"project_id": access.project_id})
        if ab_campaign is not None or (row is not None and row.is_tested):
            draw = await self._abtests.draw(access.project_id, ab_campaign)
            if draw is not None:
                return await self._named(access, draw.model_key, draw.campaign_id)
        if row is not None and (row.is_default or row.num_usable == 1):
            return _chosen(access, row)
        key = access.project_key
        what = "no model that is switched on" if row is None else "several models and no default"
        raise UnknownModelError(
            f"project {key!r} has {what}; name one as {key}/MODEL, or make one the default", field="model"
        )

    async def _named(self, access: ProjectAccess, model: str, campaign_id: uuid.UUID | None = None) -> Chosen:
        row = await self._database.first(_NAMED, _key_values(access, model))
        if row is None:
            raise UnknownModelError(f"project {access.project_key!r} has no model {model!r}", field="model")
        return _chosen(access, row, campaign_id)

    def _require_online(self, chosen: Chosen) -> None:
        model = chosen.model
        if not chosen.service.desired_online:
            raise UnavailableError(f"{chosen.name} is switched off; deploy it to switch it on", retry_after_s=60)
        if model.kind == EXTERNAL or self._router.serves(model.key):
            return
        if model.online == "ERROR":
            raise UnavailableError(f"{chosen.name} cannot be served: {model.error}", retry_after_s=60)
        raise UnavailableError(f"{chosen.name} is still loading", retry_after_s=LOADING_RETRY_S)


def _chosen(access: ProjectAccess, row: Row[*tuple[Any, ...]], campaign_id: uuid.UUID | None = None) -> Chosen:
    service, model = row[:_SERVICE_FIELDS], row[_SERVICE_FIELDS : _SERVICE_FIELDS + len(AskedModel._fields)]
    return Chosen(access, AskedService(*service), AskedModel(*model), row.template, campaign_id)


def _key_values(access: ProjectAccess, model: str) -> dict[str, object]:
    try:
        model_id = uuid.UUID(model)
    except ValueError:
        model_id = None
    return {"project_id": access.project_id, "wanted_id": model_id, "wanted_key": model}


_SERVICE_FIELDS = len(AskedService._fields)
_IN_PROJECT = (
    select(
        *(getattr(ModelService, name) for name in AskedService._fields),
        *(getattr(Model, name) for name in AskedModel._fields),
        SystemPromptTemplate.template,
    )
    .join_from(ModelService, Model, Model.id == ModelService.model_id)
    .outerjoin(SystemPromptTemplate, SystemPromptTemplate.id == ModelService.system_prompt_id)
    .where(ModelService.project_id == bindparam("project_id"), ModelService.deleted_at.is_(None))
)
_WANTED_ID = cast(bindparam("wanted_id", type_=Uuid), Uuid)
_NAMED = _IN_PROJECT.where(
    or_(
        ModelService.id == _WANTED_ID,
        ModelService.key == bindparam("wanted_key"),
        Model.id == _WANTED_ID,
        Model.key == bindparam("wanted_key"),
    )
).limit(1)
_DEFAULT = (
    _IN_PROJECT.add_columns(
        ModelService.is_default,
        func.count().over().label("num_usable"),
        exists()
        .where(AbCampaign.project_id == ModelService.project_id, AbCampaign.status.in_(RUNNING))
        .label("is_tested"),
    )
    .where(or_(ModelService.is_default, ModelService.desired_online))
    .order_by(ModelService.is_default.desc())
    .limit(1)
)
