"""System prompts that a project keeps for its models: texts with places for arguments, `{{ name }}`.

They never change. A newer version is another one of the same name, so that what a model was told can be looked up, and
a model goes over to it at one moment.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.models import ModelService
from harmonia.server.db.prompts import SystemPromptTemplate
from harmonia.server.services.access import Caller, require_in_project
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_name

MAX_TEMPLATE = 100_000
"""Characters: every chat reads them."""
_PLACE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_OPEN = "{{"


class SystemPrompts:
    """Everything about them but using them, which `filled` does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, project: str, name: str, template: str) -> SystemPromptTemplate:
        """A template, or a newer version of the one of that name; needs `project:update`. No model uses it yet."""
        _check(template)
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            row = SystemPromptTemplate(
                project_id=access.project_id,
                name=checked_name(name),
                template=template,
                created_by=caller.user_id,
            )
            session.add(row)
            await session.flush()
            record(session, caller, "system_prompt.create", f"system_prompt/{row.id}", project=access.project_key)
            return row

    async def all(self, caller: Caller, project: str) -> list[SystemPromptTemplate]:
        """Those of a project, the newest first; needs `project:read`."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:read")
            query = select(SystemPromptTemplate).where(SystemPromptTemplate.project_id == access.project_id)
            newest = query.order_by(SystemPromptTemplate.created_at.desc(), SystemPromptTemplate.id)
            return list((await session.execute(newest)).scalars())

    async def by_id(self, template_id: uuid.UUID) -> SystemPromptTemplate | None:
        """One of them, for who sees the model that begins with it."""
        async with self._database.read() as session:
            return await session.get(SystemPromptTemplate, template_id)

    async def delete(self, caller: Caller, project: str, template_id: uuid.UUID) -> None:
        """Forget a template; one with which a model begins is refused. Needs `project:update`."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            row = await template_of(session, access.project_id, template_id)
            used = select(ModelService.key).where(ModelService.system_prompt_id == row.id)
            key = (await session.execute(used.limit(1))).scalar()
            if key is not None:
                raise InvalidRequestError(f"the model {key!r} begins with it; give the model another first", field="id")
            await session.delete(row)
            record(session, caller, "system_prompt.delete", f"system_prompt/{row.id}", project=access.project_key)


async def template_of(session: AsyncSession, project_id: uuid.UUID, template_id: uuid.UUID) -> SystemPromptTemplate:
    """A template of a project, inside a transaction; `EntityNotFoundError` if it has none of the id."""
    row = await session.get(SystemPromptTemplate, template_id)
    if row is None or row.project_id != project_id:
        raise EntityNotFoundError(
            f"System prompt template {str(template_id)!r} does not exist here", entity="system prompt template"
        )
    return row


def arguments_of(template: str) -> list[str]:
    """The names that a template has places for, in the order in which they come first."""
    return list(dict.fromkeys(_PLACE.findall(template)))


def filled(template: str, arguments: Mapping[str, Any]) -> str:
    """A template with its arguments: texts as they are, everything else as JSON.

    `InvalidRequestError` names an argument that is missing, or that the template has no place for.
    """
    names = arguments_of(template)
    missing = [name for name in names if name not in arguments]
    if missing:
        raise InvalidRequestError(
            f"system_prompt_args: the model's system prompt asks for {missing[0]!r}; give "
            f"{', '.join(map(repr, names))}",
            field=f"system_prompt_args.{missing[0]}",
        )
    unknown = next((name for name in arguments if name not in names), None)
    if unknown is not None:
        known = ", ".join(map(repr, names)) or "none"
        raise InvalidRequestError(
            f"system_prompt_args: the model's system prompt has no place for {unknown!r:.80}; it has {known}",
            field="system_prompt_args",
        )
    return _PLACE.sub(lambda place: _text(arguments[place.group(1)]), template)


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _check(template: str) -> None:
    if not template.strip() or len(template) > MAX_TEMPLATE:
        raise InvalidRequestError(
            f"template: a system prompt has 1 to {MAX_TEMPLATE} characters, got {len(template)}", field="template"
        )
    rest = _PLACE.sub("", template)
    if _OPEN in rest:
        start = rest.index(_OPEN)
        raise InvalidRequestError(
            f"template: {rest[start : start + 40]!r} is no place for an argument; write {{{{ name }}}}, with letters, "
            "digits and underscores",
            field="template",
        )
