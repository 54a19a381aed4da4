"""`harmonia up` as people run it: a process, its words, its signals."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from harmonia.cli.main import app
from harmonia.cli.up import alone_in
from harmonia.server import bind
from tests.integration.control.starting import KEY, environment, started


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is told by a start that comes to nothing."""
    logger = logging.getLogger("harmonia")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])  # the log of the tests stays as it is
    monkeypatch.setattr(logger, "level", logger.level)

    def start(*options: str, **variables: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            done = CliRunner().invoke(app, ["up", "--port", "0", *options])
        assert done.exit_code == 1, done.output
        return done.stderr.replace("\n", " ")

    return start


def test_the_first_start_gives_a_key_and_the_second_keeps_everything(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with started(folder) as first:
        headers = {"authorization": f"Bearer {first.api_key}"}
        made = httpx.post(
            f"{first.url}/api/graphql",
            json={"query": 'mutation { createTeam(input: {name: "Support"}) { key } }'},
            headers=headers,
        )
        assert made.json()["data"]["createTeam"]["key"] == "support"
        assert first.end(signal.SIGTERM) == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    with started(folder, ADAPTIVE_SERVER__INTERNAL_PORT="0") as second:
        assert not KEY.search(second.words)
        teams = httpx.post(f"{second.url}/api/graphql", json={"query": "{ teams { key } }"}, headers=headers)
        assert {"key": "support"} in teams.json()["data"]["teams"]
        assert second.end(signal.SIGINT) == 0


def test_mistakes_end_with_the_name_of_what_is_wrong(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = ("--data-dir", str(tmp_path / "data"))
    assert "ADAPTIVE_DB__ULR" in refused(*folder, ADAPTIVE_DB__ULR="sqlite:///x")
    assert "ADAPTIVE_SERVER__MAX_CONNECTIONS" in refused(*folder, ADAPTIVE_SERVER__MAX_CONNECTIONS="many")
    assert "ADAPTIVE_AUTH__OIDC__PROVIDERS is not JSON" in refused(*folder, ADAPTIVE_AUTH__OIDC__PROVIDERS="google")
    assert "ADAPTIVE_LOG_FORMAT" in refused(*folder, ADAPTIVE_LOG_FORMAT="xml")
    assert "LOUD" in refused(*folder, ADAPTIVE_LOGGING_LEVEL="loud")
    assert "./nowhere.gguf does not exist" in refused("./nowhere.gguf", *folder)
    assert "migrate upgrade" in refused(*folder, ADAPTIVE_DB__RUN_MIGRATIONS="false")


def test_no_password_is_told(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = ("--data-dir", str(tmp_path / "data"))
    for address in ("postgresql://me:secret@127.0.0.1:1/x", "mysql://me:secret@here/x", "me:secret@here"):
        assert "secret" not in refused(*folder, "--database", address)


def test_an_address_that_is_taken_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        told = refused("--data-dir", str(tmp_path / "data"), "--port", port)
        assert f"cannot listen on 127.0.0.1 port {port}" in told and "--port" in told


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "--data-dir names another" in refused("--data-dir", str(tmp_path / "file" / "data"))


def test_two_servers_do_not_share_a_data_folder(tmp_path: Path, refused: Callable[..., str]) -> None:
    with alone_in(tmp_path):
        assert f"a server runs with the data folder {tmp_path} already" in refused("--data-dir", str(tmp_path))


def test_help_names_every_variable() -> None:
    told = CliRunner().invoke(app, ["up", "--help"], terminal_width=200).output
    for name in ("ADAPTIVE_DB__URL", "ADAPTIVE_AUTH__OIDC__PROVIDERS", "ADAPTIVE_SERVER__INTERNAL_PORT"):
        assert name in told


@pytest.mark.parametrize("command", [["harmonia.cli", "up"], ["harmonia.cli.demo"]])
def test_an_interrupt_during_the_imports_leaves_no_trace(command: list[str]) -> None:
    python = [sys.executable, "-X", "importtime", "-m", *command]
    # Whoever runs the tests in the background may have told them to ignore it, which processes inherit.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", heeding, *python], stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stderr is not None
        assert any(re.search(r"\btyper$", line.rstrip()) for line in process.stderr)  # much is still to come
        process.send_signal(signal.SIGINT)
        patience = threading.Timer(60, process.kill)
        patience.start()
        rest = process.stderr.read()
        patience.cancel()
        assert process.wait() == -signal.SIGINT
    assert all(line.startswith("import time:") for line in rest.splitlines()[:-1]), rest
