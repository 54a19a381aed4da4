"""Settings of the HTTP server, read from `ADAPTIVE_*` variables with `__` between levels."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class HttpServer(BaseModel):
    """The listening side."""

    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = 9000
    """Port to bind."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Longest wait for the first byte of a response; a running stream is never cut."""
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """Largest request body; a larger one gets 413."""
    max_connections: int = Field(default=16_384, gt=0)
    """Open connections; further ones get 503."""
    header_timeout_seconds: float = Field(default=20.0, gt=0)
    """A connection that has not sent a whole request by then is closed."""
    shutdown_grace_seconds: float = Field(default=20.0, ge=0)
    """How long running streams may go on after a signal to stop."""

    @property
    def url(self) -> str:
        """Where programs of this machine reach it; `port` must be the one that was bound."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class HttpClient(BaseModel):
    """The side that talks to workers."""

    timeout_secs: float = Field(default=60.0, gt=0)
    """Longest wait for a worker to take a request or answer a command."""
    max_silence_secs: float = Field(default=30.0, gt=0)
    """How long a worker's process may hang (stopped, or stuck in a call) before it is killed and started again; it is
    noticed within 1.25 times that. Loading, long prompts and training steps are no hanging, however long they take."""


class ServerConfig(BaseSettings):
    """Everything the HTTP server needs beside the workers it fronts."""

    model_config = SettingsConfigDict(env_prefix="ADAPTIVE_", env_nested_delimiter="__")

    server: HttpServer = HttpServer()
    """`ADAPTIVE_SERVER__*`."""
    http_client: HttpClient = HttpClient()
    """`ADAPTIVE_HTTP_CLIENT__*`."""
    max_ttft_ms: int = Field(default=60_000, gt=0)
    """`ADAPTIVE_MAX_TTFT_MS`: default bound on the time to the first token, queue included."""
    api_keys: tuple[str, ...] = ()
    """Keys that callers may present; none means that every caller is let in."""

    def at_port(self, port: int) -> Self:
        """The same at the port that was bound, where the settings say 0 for any."""
        return self.model_copy(update={"server": self.server.model_copy(update={"port": port})})
