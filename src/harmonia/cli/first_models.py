"""The models that `harmonia up MODEL ...` registers and deploys, so that the first question needs no other command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harmonia.cli.serve import default_key
from harmonia.errors import InvalidRequestError
from harmonia.server.services.access import Caller
from harmonia.server.services.keys import key_from
from harmonia.server.services.models.deployments import ServiceChanges
from harmonia.server.services.models.models import NewModel
from harmonia.server.services.people.projects import NewProject
from harmonia.server.services.services import Services

PROJECT = "default"
EXAMPLE_QUESTION = {"role": "user", "content": "What is the capital of France?"}
EXAMPLE_TOKENS = 100
"""A small model may ramble until its context is full; an example should end soon."""


def located(models: Sequence[str]) -> list[Path]:
    """Absolute paths; refuses one that is not there before anything is started."""
    paths = [Path(model).expanduser().resolve() for model in models]
    for model, path in zip(models, paths, strict=True):
        if not path.exists():
            raise InvalidRequestError(
                f"{model} does not exist; give a Hugging Face folder or a GGUF file", field="model"
            )
    return paths


async def deploy(services: Services, paths: Sequence[Path], tell: Callable[[str], None]) -> list[str]:
    """Register what is not registered yet, deploy all into the project `default`, and wait until they answer.

    The first becomes the project's default model. Returns their keys; raises what the models' services raise, with
    what was done until then kept.
    """
    caller = await services.people.operator()
    if await services.projects.find(caller, PROJECT) is None:
        await services.projects.create(caller, NewProject("Default", key=PROJECT))
    keys = [await _registered(services, caller, path) for path in paths]
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


def curl(url: str, model: str, api_key: str) -> str:
    """A command that asks a model of the project something."""
    body = {
        "model": f"{PROJECT}/{model}",
        "messages": [EXAMPLE_QUESTION],
        "temperature": 0,
        "max_tokens": EXAMPLE_TOKENS,
        "stream": True,
    }
    return (
        f'curl -N {url}/api/v1/chat/completions -H "Content-Type: application/json" '
        f'-H "Authorization: Bearer {api_key}" \\\n  -d {shlex.quote(msgspec.json.encode(body).decode())}'
    )


def python(url: str, model: str, api_key: str) -> str:
    """The same with the SDK, as an answer in one piece. api_key: an expression of Python."""
    return (
        "  from harmonia.sdk import Adaptive\n"
        f'  adaptive = Adaptive(base_url="{url}", api_key={api_key}, default_project="{PROJECT}")\n'
        f'  answer = adaptive.chat.create([{EXAMPLE_QUESTION}], model="{model}", temperature=0, '
        f"max_tokens={EXAMPLE_TOKENS})\n"
        "  print(answer.choices[0].message.content)"
    )
