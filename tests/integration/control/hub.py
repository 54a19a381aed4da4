"""Hugging Face's hub in a thread: its routes for looking models up and for files, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000
"""Files of so many bytes are described as the hub describes large ones."""
_BLOCK = 1 << 12


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """Models by their names there, each a folder."""

    models: dict[str, Path] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Who may read a model, if not everybody."""
    gated: set[str] = field(default_factory=set)
    """Of these everybody may read the description, and who has the token the files."""
    breaks_after: dict[str, int] = field(default_factory=dict)
    """Bytes of a file that come before the connection breaks, once."""
    stalls: threading.Event | None = None
    """Large files stop half way until it is set."""
    garbled: set[str] = field(default_factory=set)
    knows_ranges: bool = True
    is_down: bool = False
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self.stalls is not None:
            self.stalls.set()
        self._server.shutdown()
        self._server.server_close()

    def fetched(self, name: str) -> list[Asked]:
        """Requests for a file."""
        return [asked for asked in self.asked if asked.path.endswith(f"/{name}")]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        asked = Asked(path, handler.headers.get("range"), handler.headers.get("authorization"))
        self.asked.append(asked)
        repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if self.is_down:
            _say(handler, 503, {"error": "down"})
        elif repo not in self.models:
            _say(handler, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/") and (repo in self.gated or self._lets_in(repo, asked)):
            _say(handler, 200, self._described(repo))
        elif not self._lets_in(repo, asked):
            code = {"X-Error-Code": "GatedRepo" if repo in self.gated else "RepoNotFound"}
            _say(handler, 403 if repo in self.gated else 401, {"error": "no access"}, code)
        else:
            name = path.partition(f"/resolve/{REVISION}/")[2]
            self._send(handler, self.models[repo] / name, asked.range)

    def _lets_in(self, repo: str, asked: Asked) -> bool:
        return repo not in self.tokens or asked.authorization == f"Bearer {self.tokens[repo]}"

    def _described(self, repo: str) -> dict[str, object]:
        folder = self.models[repo]
        files = [self._file(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        return {"id": repo, "modelId": repo, "sha": REVISION, "siblings": files, "tags": [], "private": False}

    def _file(self, folder: Path, path: Path) -> dict[str, object]:
        content = path.read_bytes()
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        found: dict[str, object] = {"rfilename": str(path.relative_to(folder)), "size": len(content), "blobId": blob}
        if len(content) >= LARGE:
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return found

    def _send(self, handler: BaseHTTPRequestHandler, path: Path, wanted: str | None) -> None:
        content = path.read_bytes()
        if path.name in self.garbled:
            content = content[::-1]
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(len(content) - begin))
        handler.end_headers()
        breaks_at = self.breaks_after.pop(path.name, None)
        for place in range(begin, len(content), _BLOCK):
            if breaks_at is not None and place >= breaks_at:
                handler.close_connection = True
                handler.connection.close()
                return
            if self.stalls is not None and len(content) >= LARGE and place >= len(content) // 2:
                self.stalls.wait(60)
            try:
                handler.wfile.write(content[place : place + _BLOCK])
            except OSError:
                return


def _say(
    handler: BaseHTTPRequestHandler, status: int, body: dict[str, object], headers: dict[str, str] | None = None
) -> None:
    content = json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
