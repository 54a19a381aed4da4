# Made by scripts/generate of src/harmonia/sdk/aio/system_prompts.py: change that file, then run the script.
"""System prompts that projects keep for their models."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.sdk.operations import models, system_prompts
from harmonia.sdk.operations.models import ModelService
from harmonia.sdk.operations.system_prompts import SystemPrompt
from harmonia.sdk.sync.resource import Resource


class SystemPrompts(Resource):
    """`adaptive.system_prompts`: what chats begin with, whoever asks.

    `use` gives one to a model of the project; chats fill its places with `system_prompt_args`.
    """

    def create(self, name: str, template: str, project: str | None = None) -> SystemPrompt:
        """A text with places for arguments, `{{ name }}`. It never changes: the same name again is a newer version."""
        body = {"name": name, "template": template}
        chosen = self._project(project)
        return self._transport.execute(system_prompts.CREATE_SYSTEM_PROMPT, project=chosen, input=body)

    def use(self, model: str, system_prompt: str | None, project: str | None = None) -> ModelService:
        """Let the chats of a model begin with one, by id; None: with none. What callers' own say follows it."""
        body = {"project": self._project(project), "modelService": model, "systemPromptTemplate": system_prompt}
        return self._transport.execute(models.UPDATE_SERVICE, input=body)

    def list(self, project: str | None = None) -> Sequence[SystemPrompt]:
        """Those of a project, the newest first."""
        return self._transport.execute(system_prompts.SYSTEM_PROMPTS, project=self._project(project))

    def delete(self, system_prompt: str, project: str | None = None) -> bool:
        """Forget one, by id, with which no model begins."""
        chosen = self._project(project)
        return self._transport.execute(system_prompts.DELETE_SYSTEM_PROMPT, project=chosen, id=system_prompt)
