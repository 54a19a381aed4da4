"""`harmonia artifact`: what the jobs of a server made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.console import Console

from harmonia.cli.app import app
from harmonia.cli.server_access import PANEL, ProjectOption, moment, server, show
from harmonia.cli.server_jobs import exit_if_failed, followed, show_job
from harmonia.errors import InvalidRequestError
from harmonia.sdk.inputs import ArtifactFilter

group = typer.Typer(name="artifact", help="What the jobs of a server made.", no_args_is_help=True)
app.add_typer(group, rich_help_panel=PANEL)

Kind = Literal["EVALUATION", "CUSTOM", "DATASET", "MODEL", "CHECKPOINT"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ArtifactId = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Id.", show_default=False)]


@group.command("list")
def list_artifacts(
    project: ProjectOption = None,
    job: Annotated[str | None, typer.Option("--job", "-j", help="Of this job only.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", "-k", help=f"{', '.join(KINDS).lower()}.")] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, max=1000, help="Show this many.")] = 100,
) -> None:
    """The newest of a project."""
    with server(project) as adaptive:
        found = adaptive.artifacts.list(filter=_wanted(job, kind), limit=last)
        rows = {item.id: (item.id, item.name, item.kind, item.status, moment(item.created_at)) for item in found}
        show(rows, ("artifact", "name", "kind", "state", "made"))


def _wanted(job: str | None, kinds: list[str] | None) -> ArtifactFilter:
    wanted = ArtifactFilter()
    if job is not None:
        wanted["job_id"] = job
    if kinds:
        chosen = {name.upper() for name in kinds}
        if not chosen <= set(KINDS):
            raise InvalidRequestError(f"--kind: there are {', '.join(KINDS).lower()}", field="kind")
        wanted["kinds"] = [name for name in KINDS if name in chosen]
    return wanted


@group.command("download")
def download_artifact(
    artifact: ArtifactId,
    to: Annotated[Path | None, typer.Option("--to", "-o", dir_okay=False, help="A file; else it is printed.")] = None,
) -> None:
    """Fetch the content of an artifact. Models have none of their own: `harmonia model` deploys them."""
    with server() as adaptive:
        if to is None and Console().is_terminal:
            raise InvalidRequestError("name a file with --to; what jobs make is not for terminals", field="to")
        content = adaptive.artifacts.download(artifact, to)
        if to is None:
            typer.get_binary_stream("stdout").write(content)


@group.command("promote")
def promote_checkpoint(
    checkpoint: ArtifactId,
    model: Annotated[str, typer.Argument(help="Key of the model that was trained.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Of the model that shall be; its key is made of it.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it has ended.")] = False,
) -> None:
    """Make a model of a checkpoint, which would go with its job.

    [bold]Example[/bold]

      harmonia artifact list --kind checkpoint

      harmonia artifact promote 0f8fad5b-d9cb-469f-a165-70867728950e qwen3 "Half way"
    """
    with server() as adaptive:
        job = adaptive.artifacts.promote(checkpoint, {model: name})
        if follow:
            job = followed(adaptive, job)
        show_job(job)
        exit_if_failed(job)
