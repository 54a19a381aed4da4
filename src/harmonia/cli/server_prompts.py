"""`harmonia prompt`: system prompts that a project keeps for its models."""

from __future__ import annotations

from typing import Annotated

import typer

from harmonia.cli.app import app
from harmonia.cli.server_access import PANEL, ProjectOption, server, show, show_one
from harmonia.errors import InvalidRequestError

group = typer.Typer(name="prompt", help="System prompts of a project.", no_args_is_help=True)
app.add_typer(group, rich_help_panel=PANEL)


@group.command("create")
def create_prompt(
    name: Annotated[str, typer.Argument(help="The same again is a newer version.", show_default=False)],
    template: Annotated[typer.FileText, typer.Argument(help="A file, or - for what comes in.", show_default=False)],
    project: ProjectOption = None,
) -> None:
    """Keep a system prompt. Callers fill places such as {{ language }} with `system_prompt_args`."""
    with server(project) as adaptive:
        made = adaptive.system_prompts.create(name, template.read())
        show_one(made.id, {"prompt": made.id, "name": made.name, "arguments": made.arguments})


@group.command("list")
def list_prompts(project: ProjectOption = None) -> None:
    """Those of a project, the newest first."""
    with server(project) as adaptive:
        found = adaptive.system_prompts.list()
        rows = {item.id: (item.id, item.name, item.arguments, item.created_at, item.template) for item in found}
        show(rows, ("prompt", "name", "arguments", "made", "text"))


@group.command("use")
def use_prompt(
    model: Annotated[str, typer.Argument(help="Key or id of a model of the project.", show_default=False)],
    prompt: Annotated[str | None, typer.Argument(help="Id.", show_default=False)] = None,
    none: Annotated[bool, typer.Option("--none", help="Let its chats begin with none.")] = False,
    project: ProjectOption = None,
) -> None:
    """Let the chats of a model begin with a system prompt. What callers' own says follows it."""
    with server(project) as adaptive:
        if (prompt is None) is not none:
            raise InvalidRequestError("give the id of a prompt, or --none", field="prompt")
        service = adaptive.system_prompts.use(model, prompt)
        show_one(service.id, {"model": service.key, "prompt": prompt})


@group.command("delete")
def delete_prompt(
    prompt: Annotated[str, typer.Argument(help="Id.", show_default=False)], project: ProjectOption = None
) -> None:
    """Forget a system prompt with which no model begins."""
    with server(project) as adaptive:
        adaptive.system_prompts.delete(prompt)
