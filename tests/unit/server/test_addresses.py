"""Where a server tells that it can be reached."""

import pytest

from harmonia.config.server import ServerConfig


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("0.0.0.0", "http://127.0.0.1:81"),
        ("", "http://127.0.0.1:81"),
        ("::", "http://[::1]:81"),
        ("fe80::1", "http://[fe80::1]:81"),
        ("host.example", "http://host.example:81"),
    ],
)
def test_an_address_can_be_asked_from_this_machine(host: str, url: str) -> None:
    config = ServerConfig(server={"host": host, "port": 0})
    assert config.at_port(81).server.url == url
    assert config.server.port == 0
