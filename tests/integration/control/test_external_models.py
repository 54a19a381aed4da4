"""Endpoints of external models: which addresses may be asked, and who may change that."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from harmonia.config.control import ControlConfig
from harmonia.errors import InvalidRequestError, PermissionDeniedError
from harmonia.sdk import Adaptive
from tests.integration.control.conftest import Plane
from tests.integration.control.test_judges import Provider

P = "tickets"
SETTING = "ADAPTIVE_EXTERNAL_MODELS__ALLOW_PRIVATE=true"


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    provider.answers = ["Hello from afar"]
    yield provider
    provider.close()


@contextmanager
def planes(folder: Path, *, allow_private: bool) -> Iterator[tuple[Plane, Adaptive]]:
    """A control plane on a folder that may hold the database of an earlier one, and its admin."""
    key = folder / "key"
    with Plane(ControlConfig(data_dir=folder, external_models={"allow_private": allow_private})) as plane:
        plane.api_key = plane.api_key or key.read_text()
        key.write_text(plane.api_key)
        with Adaptive(plane.url, plane.api_key, P) as admin:
            yield plane, admin


def ask(plane: Plane, model: str) -> httpx.Response:
    body = {"model": f"{P}/{model}", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"authorization": f"Bearer {plane.api_key}"}
    return httpx.post(f"{plane.url}/api/v1/chat/completions", json=body, headers=headers, timeout=30)


def test_private_endpoints_are_for_the_operator_to_permit(tmp_path: Path, provider: Provider) -> None:
    with planes(tmp_path, allow_private=True) as (plane, admin):
        admin.projects.create(P)
        admin.models.add_external("Near", "near-1", "sk-secret", "open_ai", endpoint=f"{provider.url}/")
        admin.models.deploy("near", wait=True)
        answer = ask(plane, "near")
        assert answer.json()["choices"][0]["message"]["content"] == "Hello from afar"
    with planes(tmp_path, allow_private=False) as (plane, admin):
        refused = ask(plane, "near")
        assert refused.status_code == 400, refused.text
        assert "127.0.0.1, an address that is not public" in refused.text and SETTING in refused.text
        assert len(provider.asked) == 1
        for endpoint in (provider.url, "http://169.254.169.254/v1", "http://[::1]:8000/v1"):
            with pytest.raises(InvalidRequestError, match=f"not public.*{SETTING}"):
                admin.models.add_external("Other", "x", "sk-secret", "open_ai", endpoint=endpoint)
        for endpoint in ("ftp://example.com", "https://", "http://user:word@93.184.216.34/v1"):
            with pytest.raises(InvalidRequestError, match="endpoint: "):
                admin.models.add_external("Other", "x", "sk-secret", "open_ai", endpoint=endpoint)
        assert [model.key for model in admin.models.list({"view_all": True})] == ["near"]
        account = admin.users.create_service_account("bot", [("default", "read-only")])
        with Adaptive(plane.url, account.generated_api_key, P) as bot, pytest.raises(PermissionDeniedError):
            # Whoever may not register models does not learn either what names mean inside of this network.
            bot.models.add_external("Other", "x", "sk-secret", "open_ai", endpoint=provider.url)


def test_a_name_that_turns_private_is_not_followed(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, found = int(httpx.URL(provider.url).port or 0), ["93.184.216.34"]
    lookup = asyncio.base_events.BaseEventLoop.getaddrinfo

    async def getaddrinfo(loop: Any, host: Any, wanted: Any, **more: Any) -> Any:
        if host != "rebind.example":
            return await lookup(loop, host, wanted, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found[0], wanted))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    with planes(tmp_path, allow_private=False) as (plane, admin):
        admin.projects.create(P)
        admin.models.add_external("Far", "far-1", "sk-secret", "open_ai", endpoint=f"http://rebind.example:{port}/v1")
        admin.models.deploy("far", wait=True)
        found[0] = "127.0.0.1"
        answer = ask(plane, "far")
        assert answer.status_code == 400 and SETTING in answer.text, answer.text
        assert provider.asked == []


def test_a_host_that_nobody_knows_yet_can_be_registered(tmp_path: Path) -> None:
    with planes(tmp_path, allow_private=False) as (plane, admin):
        admin.projects.create(P)
        admin.models.add_external("Later", "x", "sk-secret", "open_ai", endpoint="https://nobody.invalid/v1")
        admin.models.deploy("later", wait=True)
        answer = ask(plane, "later")
        assert answer.status_code == 503 and "cannot be reached" in answer.text
