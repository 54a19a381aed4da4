"""A server outside that scores answers, as people write them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSED = "refuse me"


class RewardServer:
    """Its reward is the length of the answer, and beside it stands what it was told. It refuses a batch with a
    conversation that says `REFUSED`; `is_broken`: it answers nothing but errors."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.is_broken = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                info = {"name": "Lengths", "version": "1", "description": "How long answers are"}
                self._answer(200 if self.path == "/info" else 404, info)

            def do_POST(self) -> None:
                requests = json.loads(self.rfile.read(int(self.headers["content-length"])))["requests"]
                server.batches.append(len(requests))
                if server.is_broken:
                    self._answer(500, {"detail": "out of order"})
                elif any(request["turns"][0]["content"] == REFUSED for request in requests):
                    self._answer(422, {"detail": "no such question"})
                else:
                    self._answer(200, {"responses": [_reward(request) for request in requests]})

            def _answer(self, status: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _reward(request: dict[str, Any]) -> dict[str, Any]:
    return {"reward": len(request["turns"][-1]["content"]), "metadata": {"told": request["metadata"]}, "id": None}
