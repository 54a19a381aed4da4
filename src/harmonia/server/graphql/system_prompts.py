"""System prompts that projects keep for their models."""

from __future__ import annotations

import uuid

import strawberry

from harmonia.server.db import prompts as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.scalars import DateTimeText, IdOrKey, rfc3339
from harmonia.server.services.models.system_prompts import arguments_of


@strawberry.type
class SystemPromptTemplate:
    """A text with places for arguments, `{{ name }}`. It never changes; a newer version is another of the same name."""

    id: uuid.UUID
    name: str
    template: str
    arguments: list[str]
    created_at: DateTimeText
    created_by: uuid.UUID

    @classmethod
    def of(cls, row: db.SystemPromptTemplate) -> SystemPromptTemplate:
        """From its row."""
        return cls(
            id=row.id,
            name=row.name,
            template=row.template,
            arguments=arguments_of(row.template),
            created_at=rfc3339(row.created_at),
            created_by=row.created_by,
        )


@strawberry.input
class SystemPromptTemplateCreate:
    """A new template, or a newer version of the one of that name."""

    name: str
    template: str


@strawberry.type
class SystemPromptQuery:
    """System prompts."""

    @strawberry.field
    async def system_prompt_templates(self, info: Info, project: IdOrKey) -> list[SystemPromptTemplate]:
        """Those of a project, the newest first."""
        rows = await info.context.services.system_prompts.all(info.context.caller, project)
        return [SystemPromptTemplate.of(row) for row in rows]


@strawberry.type
class SystemPromptMutation:
    """Keeping system prompts; `updateModelService` gives one to a model."""

    @strawberry.mutation
    async def create_system_prompt_template(
        self, info: Info, project: IdOrKey, input: SystemPromptTemplateCreate
    ) -> SystemPromptTemplate:
        """Keep a system prompt; no model begins with it yet."""
        prompts = info.context.services.system_prompts
        row = await prompts.create(info.context.caller, project, input.name, input.template)
        return SystemPromptTemplate.of(row)

    @strawberry.mutation
    async def delete_system_prompt_template(self, info: Info, project: IdOrKey, id: uuid.UUID) -> bool:
        """Forget a system prompt with which no model begins."""
        await info.context.services.system_prompts.delete(info.context.caller, project, id)
        return True
