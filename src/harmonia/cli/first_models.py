"""The models that `harmonia up MODEL ...` registers and deploys, so that the first question needs no other command."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harmonia.cli.running import EXAMPLE_QUESTION
from harmonia.cli.serve import default_key
from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.server.services.access import Caller
from harmonia.server.services.jobs.imports import HUB_ID, NewImport
from harmonia.server.services.keys import key_from
from harmonia.server.services.models.deployments import ServiceChanges
from harmonia.server.services.models.models import NewModel
from harmonia.server.services.people.projects import NewProject
from harmonia.server.services.services import Services

PROJECT = "default"
EXAMPLE_TOKENS = 100
"""A small model may ramble until its context is full; an example should end soon."""
_POLL_S = 0.5


def located(models: Sequence[str]) -> list[Path]:
    """Absolute paths; refuses one that is not there before anything is started."""
    paths = [Path(model).expanduser().resolve() for model in models]
    for model, path in zip(models, paths, strict=True):
        if not path.exists():
            raise InvalidRequestError(
                f"{model} does not exist; give a Hugging Face folder, a GGUF file, or OWNER/NAME of Hugging Face's hub",
                field="model",
            )
    return paths


def found(models: Sequence[str]) -> list[Path | str]:
    """The same, where a name of Hugging Face's hub may stand for what is nowhere here; it stays a string."""
    return [model if _is_hub_id(model) else located([model])[0] for model in models]


def _is_hub_id(model: str) -> bool:
    num_parts = 1 + model.count("/")
    may_be = num_parts == 3 or (num_parts == 2 and not model.endswith(".gguf"))
    return may_be and HUB_ID.fullmatch(model) is not None and not Path(model).expanduser().exists()


async def deploy(services: Services, models: Sequence[Path | str], tell: Callable[[str], None]) -> list[str]:
    """Register or import what is not there yet, deploy all into the project `default`, and wait until they answer.

    models: paths, and names of Hugging Face's hub, for which the token in `HF_TOKEN` is used. The first becomes the
    project's default model. Returns their keys; raises what the models' services raise, with what was done until then
    kept.
    """
    caller = await services.people.operator()
    if await services.projects.find(caller, PROJECT) is None:
        await services.projects.create(caller, NewProject("Default", key=PROJECT))
    keys = [
        await (
            _registered(services, caller, model)
            if isinstance(model, Path)
            else _imported(services, caller, model, tell)
        )
        for model in models
    ]
    for key in keys:
        tell(f"loading {key}")
        await services.deployments.deploy(caller, PROJECT, key, wait=True)
        tell(f"{key} is online")
    await services.deployments.change(caller, PROJECT, keys[0], ServiceChanges(is_default=True))
    return keys


async def _registered(services: Services, caller: Caller, path: Path) -> str:
    key = key_from(default_key(path))
    known = await services.models.find(caller, key)
    if known is None:
        return (await services.models.add(caller, NewModel(path=str(path), name=default_key(path), key=key))).key
    if known.source is None or Path(known.source).resolve() != path:
        raise InvalidRequestError(
            f"the key {key!r} belongs to the model at {known.source}; rename {path}, or deploy it with the SDK under "
            "another key",
            field="model",
        )
    return known.key


async def _imported(services: Services, caller: Caller, hub_id: str, tell: Callable[[str], None]) -> str:
    """Wait until it is there, telling every tenth of it that came; UnavailableError says why it is not."""
    name = hub_id.rpartition("/")[2].removesuffix(".gguf")
    new = NewImport(hub_id=hub_id, name=name, token=os.environ.get("HF_TOKEN", ""))
    job_id = await services.imports.ensure(caller, new)
    told = -1
    while True:
        info = await services.jobs.find(caller, job_id)
        if info is None or info.job.status in ("FAILED", "CANCELED"):
            why = None if info is None else info.job.error
            raise UnavailableError(f"{hub_id} could not be imported: {why or 'the import was canceled'}")
        if info.job.status == "COMPLETED":
            return key_from(name)
        if (tenth := int(10 * info.progress)) > told:
            tell(f"fetching {hub_id}: {10 * tenth} %")
            told = tenth
        await asyncio.sleep(_POLL_S)


def curl(url: str, model: str, api_key: str, question: str = EXAMPLE_QUESTION) -> str:
    """A command that asks a model of the project something."""
    body = {
        "model": f"{PROJECT}/{model}",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": EXAMPLE_TOKENS,
        "stream": True,
    }
    return (
        f'curl -N {url}/api/v1/chat/completions -H "Content-Type: application/json" '
        f'-H "Authorization: Bearer {api_key}" \\\n  -d {shlex.quote(msgspec.json.encode(body).decode())}'
    )


def python(url: str, model: str, api_key: str, question: str = EXAMPLE_QUESTION) -> str:
    """The same with the SDK, as an answer in one piece. api_key: an expression of Python."""
    return (
        "  from harmonia.sdk import Adaptive\n"
        f'  adaptive = Adaptive(base_url="{url}", api_key={api_key}, default_project="{PROJECT}")\n'
        f'  answer = adaptive.chat.create([{{"role": "user", "content": "{question}"}}], model="{model}", '
        f"temperature=0, max_tokens={EXAMPLE_TOKENS})\n"
        "  print(answer.choices[0].message.content)"
    )
