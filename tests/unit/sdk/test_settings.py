"""Where a client finds the server: arguments before the environment before the file."""

from pathlib import Path

import pytest

from harmonia.errors import AuthenticationError, InvalidRequestError
from harmonia.sdk import Adaptive
from harmonia.sdk.settings import Settings, load_settings, save_settings, settings_path


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADAPTIVE_BASE_URL", "ADAPTIVE_URL", "ADAPTIVE_API_KEY", "DEFAULT_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HARMONIA_CONFIG", str(tmp_path / "own" / "config.toml"))


def test_arguments_go_before_the_environment_and_that_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save_settings(Settings("http://file:1", "hk-file", "file"))
    assert load_settings() == Settings("http://file:1", "hk-file", "file")
    monkeypatch.setenv("ADAPTIVE_URL", "http://old:2")
    monkeypatch.setenv("DEFAULT_PROJECT", "environment")
    assert load_settings() == Settings("http://old:2", "hk-file", "environment")
    monkeypatch.setenv("ADAPTIVE_BASE_URL", "http://new:3")
    assert load_settings(Settings(default_project="given")) == Settings("http://new:3", "hk-file", "given")


def test_the_file_is_the_owners_alone_and_holds_any_text() -> None:
    odd = Settings("http://x:1", 'a"b\\c\n', "ein Projékt")
    path = save_settings(odd)
    assert path == settings_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_settings() == odd
    path.chmod(0o644)
    save_settings(odd)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["api_key = 1", "apikey = 'x'", "api_key = ", "\xff"])
def test_a_file_that_cannot_be_read_is_named(text: str) -> None:
    settings_path().parent.mkdir()
    settings_path().write_text(text, encoding="latin-1")
    with pytest.raises(InvalidRequestError, match=r"config\.toml"):
        load_settings()


def test_a_missing_key_says_where_to_put_one() -> None:
    with pytest.raises(AuthenticationError, match=r"ADAPTIVE_API_KEY.*set-api-key"):
        Adaptive(base_url="http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["localhost:9000", "ftp://x", "http://", "http://a:b"])
def test_an_address_needs_scheme_and_host(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="no address of a server"):
        Adaptive(base_url=address, api_key="k")


def test_a_key_is_taken_without_the_line_it_stood_on() -> None:
    assert Settings(api_key=" hk-1\n").require_key() == "hk-1"
    with pytest.raises(AuthenticationError, match="was all of it"):
        Settings(api_key="hk-1\nhk-2").require_key()
