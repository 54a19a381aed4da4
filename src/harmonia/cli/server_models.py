"""`harmonia model`: the registry of a server, and how its models are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

import typer

from harmonia.cli.app import app
from harmonia.cli.server_access import PANEL, ProjectOption, moment, server, show_one, shown
from harmonia.cli.server_jobs import exit_if_failed, followed, show_job
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.protocol.instances import MAX_DRAFT_STEPS
from harmonia.sdk.inputs import ComputeChanges
from harmonia.sdk.operations.models import Model

group = typer.Typer(name="model", help="Models of a server.", no_args_is_help=True)
app.add_typer(group, rich_help_panel=PANEL)

SETTINGS = ("tp", "kv_cache_len", "max_seq_len", "tokens_to_generate")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Key or id.", show_default=False)]
NameOption = Annotated[str | None, typer.Option("--name", "-n", help="The last part of the path or id unless given.")]
KeyOption = Annotated[str | None, typer.Option("--key", "-k", help="Made of the name unless given.")]


@group.command("add")
def add_model(
    path: Annotated[str, typer.Argument(help="A folder or GGUF file of the server's machine.", show_default=False)],
    name: NameOption = None,
    key: KeyOption = None,
) -> None:
    """Put a model that is on the server's disk into the registry. Its files stay where they are."""
    with server() as adaptive:
        _show(adaptive.models.add(path, name or _last_part(path), key))


@group.command("import")
def import_model(
    model: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME", help="Or OWNER/NAME/FILE for one of several GGUFs.", show_default=False),
    ],
    name: NameOption = None,
    key: KeyOption = None,
    token: Annotated[
        str, typer.Option(envvar="HF_TOKEN", show_default=False, help="For models that not everybody may read.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it has ended.")] = False,
) -> None:
    """Bring a model from Hugging Face's hub to the server; the job that does it can be watched and canceled.

    [bold]Example[/bold]

      harmonia model import Qwen/Qwen3-0.6B --follow
    """
    with server() as adaptive:
        job = adaptive.models.add_hf_model(model, name or _last_part(model), key, token)
        if follow:
            job = followed(adaptive, job)
        show_job(job)
        exit_if_failed(job)


@group.command("describe")
def describe_model(model: ModelArgument) -> None:
    """What is known of a model, and how it is run."""
    with server() as adaptive:
        found = adaptive.models.get(model)
        if found is None:
            raise EntityNotFoundError(
                f"there is no model {model!r}; `harmonia models --all` lists them", entity="model"
            )
        _show(found)


@group.command("deploy")
def deploy_model(
    model: ModelArgument,
    project: ProjectOption = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Until it answers.")] = False,
    default: Annotated[bool, typer.Option("--default", help="Let it answer for the whole project.")] = False,
    draft_steps: Annotated[
        int | None,
        typer.Option(
            "--num-draft-steps",
            min=1,
            max=MAX_DRAFT_STEPS,
            help="Tokens to propose at a time: by its draft or its base model's, or from the conversation without one.",
        ),
    ] = None,
) -> None:
    """Serve a model in a project."""
    with server(project) as adaptive:
        service = adaptive.models.deploy(model, wait, default, num_draft_steps=draft_steps)
        told = {"model": service.key, "state": service.status, "default": service.is_default}
        show_one(service.id, {**told, "draft steps": service.num_draft_steps})


@group.command("terminate")
def terminate_model(
    model: ModelArgument,
    force: Annotated[bool, typer.Option("--force", help="Even if several projects want it.")] = False,
) -> None:
    """Stop serving a model, in all projects."""
    with server() as adaptive:
        print(adaptive.models.terminate(model, force))


@group.command("configure")
def configure_model(
    model: ModelArgument,
    tp: Annotated[int | None, typer.Option(help="GPUs of one replica.")] = None,
    kv_cache_len: Annotated[int | None, typer.Option(help="Tokens of key/value cache.")] = None,
    max_seq_len: Annotated[int | None, typer.Option(help="Longest prompt and answer together, in tokens.")] = None,
    tokens_to_generate: Annotated[
        int | None, typer.Option(help="Longest answer to requests that do not say, in tokens.")
    ] = None,
    reset: Annotated[
        list[str] | None, typer.Option(metavar="SETTING", help=f"Back to its default: {', '.join(SETTINGS)}.")
    ] = None,
) -> None:
    """Change how a model is run, in every project and in recipes that say nothing else; the rest stays."""
    with server() as adaptive:
        changes = _changes((tp, kv_cache_len, max_seq_len, tokens_to_generate), reset or [])
        _show(adaptive.models.update_compute_config(model, changes))


@group.command("delete")
def delete_model(model: ModelArgument) -> None:
    """Take a model out of the registry, and remove its files if the server made or imported them."""
    with server() as adaptive:
        adaptive.models.delete(model)


def _changes(values: Sequence[int | None], reset: Sequence[str]) -> ComputeChanges:
    given: dict[str, int | None] = {
        name: value for name, value in zip(SETTINGS, values, strict=True) if value is not None
    }
    for name in (setting.replace("-", "_") for setting in reset):
        if name not in SETTINGS or name in given:
            what = "given and reset" if name in given else f"none of {', '.join(SETTINGS)}"
            raise InvalidRequestError(f"--reset {name}: it is {what}", field="reset")
        given[name] = None
    if not given:
        raise InvalidRequestError("nothing is to change; `harmonia model describe` shows a model", field="reset")
    return cast(ComputeChanges, given)


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].removesuffix(".gguf")


def _show(model: Model) -> None:
    kinds = {"external": model.is_external, "adapter": model.is_adapter, "draft": model.is_spec_dec_draft}
    kind = next((name for name, applies in kinds.items() if applies), "base model")
    fields: dict[str, object] = {
        "model": model.key,
        "name": model.name,
        "kind": kind,
        "of": model.backbone.key if model.backbone else None,
        "family": model.family,
        "parameters": f"{model.size:,}" if model.size else None,
        "state": model.online,
        "error": model.error,
    }
    if model.compute_config is not None:
        chosen = {name: getattr(model.compute_settings, name) for name in SETTINGS}
        for name in SETTINGS:
            default = getattr(model.compute_config, name, None)
            fields[name] = f"{shown(default)} (default)".lstrip() if chosen[name] is None else chosen[name]
    fields.update({"projects": [project.key for project in model.projects], "made": moment(model.created_at)})
    show_one(model.id, fields)
