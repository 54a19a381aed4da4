"""A service outside that integrations tell of what happens."""

from __future__ import annotations

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harmonia.server.services.notifications.channels import signature


class Listener:
    """A service outside: keeps what arrives, and answers with the next of some statuses, the last one for ever."""

    def __init__(self) -> None:
        self.statuses = [200]
        self.arrived: queue.Queue[tuple[str, dict[str, str], bytes]] = queue.Queue()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = listener.statuses.pop(0) if len(listener.statuses) > 1 else listener.statuses[0]
                headers = {name.lower(): value for name, value in self.headers.items()}
                listener.arrived.put((self.path, headers, body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def next(self) -> tuple[str, dict[str, str], bytes]:
        return self.arrived.get(timeout=90)  # a job that starts on a busy machine

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def signed(arrived: tuple[str, dict[str, str], bytes], key: str) -> tuple[str, dict[str, Any]]:
    """Topic and payload of a message that is from this server."""
    _, headers, body = arrived
    assert headers["x-harmonia-signature"] == signature(key, headers["x-harmonia-timestamp"], body)
    message = json.loads(body)
    return message["topic"], message["payload"]
