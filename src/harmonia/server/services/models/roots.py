"""Which worker each model answers from that somebody wants online."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import aliased

from harmonia.protocol.instances import NGRAM
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.models.models import ADAPTER, BASE, DRAFT, chosen_compute

WantedRow = Row[Model, Model, Model, ModelService]
"""A model, what it is an adapter of or drafts for (else itself), whose weights answer, and a project's wish."""


@dataclass(slots=True)
class Root:
    """What one worker is for: a base model, or a draft with its target; and adapters beside it."""

    model: Model
    """Under whose key it answers."""
    target: Model
    """What answers: the same, or that for which it drafts, which may be an adapter."""
    base: Model
    """Whose weights answer: the target, or what that is an adapter of."""
    pools: set[str] = field(default_factory=set)
    """Those that were chosen for it, none for any."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Folder by key."""
    is_searched: bool = False
    """Some project wants proposals from the conversation."""

    @property
    def draft(self) -> str | None:
        """What proposes tokens: a draft's own weights; without one the conversation, where somebody wants it."""
        return self.model.source if self.model.kind == DRAFT else NGRAM if self.is_searched else None

    @property
    def compute(self) -> dict[str, int]:
        """How it is run."""
        return chosen_compute(self.model, None if self.base is self.model else self.base)


def wanted_rows() -> Select[Model, Model, Model, ModelService]:
    """What shall be online on workers of this server, the oldest first."""
    target, base = aliased(Model), aliased(Model)
    return (
        select(Model, target, base, ModelService)
        .join(target, target.id == func.coalesce(Model.backbone_id, Model.id))
        .join(base, base.id == func.coalesce(target.backbone_id, target.id))
        .join(ModelService, ModelService.model_id == Model.id)
        .join(Project, Project.id == ModelService.project_id)
        .where(base.kind == BASE, Model.kind.in_((BASE, ADAPTER, DRAFT)))
        .where(ModelService.desired_online, ModelService.deleted_at.is_(None), Project.archived_at.is_(None))
        .order_by(Model.created_at, Model.key)
    )


def find_roots(rows: Iterable[WantedRow]) -> dict[str, Root]:
    """By the key under which a worker answers.

    An adapter runs beside its base model; where somebody wants proposals for it, beside a draft of that base which
    shall be online anyway, the first that does not fail, and whose proposals it gets.
    """
    rows = list(rows)
    drafts: dict[str, Root] = {}
    for model, target, base, _ in rows:
        if model.kind == DRAFT and target is base and model.online != "ERROR":
            drafts.setdefault(base.key, Root(model, target, base))
    drafted = {model.key for model, _, _, service in rows if service.num_draft_steps is not None}
    roots: dict[str, Root] = {}
    for model, target, base, service in rows:
        root = Root(base, base, base) if model.kind == ADAPTER else Root(model, target, base)
        if model.kind == ADAPTER and model.key in drafted:
            root = drafts.get(base.key, root)
        root = roots.setdefault(root.model.key, root)
        root.pools.update(service.pools)
        if model.kind == ADAPTER:
            root.adapters[model.key] = str(model.source)
        root.is_searched |= service.num_draft_steps is not None
    return roots
