"""System prompts that projects keep for their models."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, query


class SystemPrompt(Result, frozen=True):
    """A text with places for `arguments`, `{{ name }}`; `created_at` is a moment as in RFC 3339."""

    id: str
    name: str
    template: str
    arguments: list[str]
    created_at: str
    created_by: str


SYSTEM_PROMPTS = query("systemPromptTemplates", list[SystemPrompt], project="IdOrKey!")
CREATE_SYSTEM_PROMPT = mutation(
    "createSystemPromptTemplate", SystemPrompt, project="IdOrKey!", input="SystemPromptTemplateCreate!"
)
DELETE_SYSTEM_PROMPT = mutation("deleteSystemPromptTemplate", bool, project="IdOrKey!", id="UUID!")
