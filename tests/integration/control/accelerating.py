"""A server with the tiny model and a draft of it that is always right."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from harmonia.config.control import ControlConfig
from harmonia.sdk import Adaptive
from harmonia.sdk.conversation import ChatResponse
from tests.integration.control.conftest import Plane
from tests.integration.tiny_model import make_draft

PROJECT, TARGET, FAST = "tickets", "tiny", "tiny_accelerated"
ASK = [{"role": "user", "content": "Tell me something, and tell me something again."}]


@contextlib.contextmanager
def client(plane: Plane) -> Iterator[Adaptive]:
    with Adaptive(base_url=plane.url, api_key=plane.api_key, default_project=PROJECT) as adaptive:
        yield adaptive


@contextlib.contextmanager
def serving_both(folder: Path, tiny: Path) -> Iterator[Plane]:
    """A server on SQLite with both registered."""
    with Plane(ControlConfig(data_dir=folder)) as plane:
        register(plane, tiny, folder / "drafts")
        yield plane


def register(plane: Plane, tiny: Path, folder: Path) -> None:
    """Make the draft in a folder, and register both."""
    draft = make_draft(folder / FAST, tiny, str(tiny), num_draft_steps=3)
    with client(plane) as adaptive:
        adaptive.projects.create(PROJECT)
        adaptive.models.add(str(tiny), TARGET)
        adaptive.models.add(str(draft), FAST)


def wait_until(check: Callable[[], bool], timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def ask(adaptive: Adaptive, model: str, project: str | None = None) -> ChatResponse:
    return adaptive.chat.create(messages=ASK, model=model, project=project, temperature=0, max_tokens=40)


def ask_until(
    adaptive: Adaptive, model: str, holds: Callable[[ChatResponse], object], project: str | None = None
) -> ChatResponse:
    """The first answer of which it holds. Proposals that do not pay, as with so small a model, are tried seldom."""
    end = time.monotonic() + 90
    while not holds(response := ask(adaptive, model, project)):
        assert time.monotonic() < end, "it never held"
    return response


def said(response: ChatResponse) -> str | None:
    return response.choices[0].message.content


def accepted(response: ChatResponse) -> int:
    told = response.usage and response.usage.completion_tokens_details
    return told.accepted_prediction_tokens if told else 0


def is_drafted(response: ChatResponse) -> bool:
    return response.usage is not None and response.usage.acceptance_rate is not None


def counted(plane: Plane, replica: str) -> dict[str, float]:
    """What `/metrics` says of the accelerated model on one worker."""
    text = httpx.get(f"{plane.url}/metrics").text
    labels = f'model="{FAST}",replica="{replica}"'
    return {name: float(value) for name, value in re.findall(rf"harmonia_(\w+)_total{{{labels}}} (\S+)", text)}
