"""A light HTTP client: all requests at once on plain sockets, each answer a stream of events that are counted."""

import asyncio
import json
import time
from collections.abc import Sequence

import uvloop

from benchmarks.errors import BenchmarkError
from benchmarks.work import Generation

HOST = "127.0.0.1"
EVENT, END = b"\ndata: ", b"\ndata: [DONE]\n"


class Answer(asyncio.Protocol):
    """One request and the events that came back, until the server closes the connection."""

    def __init__(self, request: bytes) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first_s: float | None = None
        self._request = request
        self._received = bytearray()

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        """Send the request."""
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep what came, and note when the first event did."""
        self._received += data
        if self.first_s is None and EVENT in self._received:
            self.first_s = time.perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.done.set_result(None)

    def num_events(self) -> int:
        """Return how many events came before the end marker; raises `BenchmarkError` where it is missing."""
        if END not in self._received:
            raise BenchmarkError(f"the server broke an answer off: {self._received[-500:].decode(errors='replace')}")
        return self._received.count(EVENT) - 1


def generate(port: int, model: str, prompts: Sequence[list[int]], num_output: int) -> Generation:
    """Run all prompts at once, greedily, each to exactly `num_output` tokens, an event for each token."""
    requests = [completion_request(model, prompt, num_output) for prompt in prompts]
    wall_s, ttft_s, counts = uvloop.run(_all_at_once(port, requests))
    if set(counts) != {num_output}:
        raise BenchmarkError(
            f"asked for {num_output} tokens in as many events, got {sorted(set(counts))}; the figure would not be"
            " comparable"
        )
    return Generation(wall_s=wall_s, tokens=[], ttft_s=ttft_s)


def completion_request(model: str, prompt: list[int], num_output: int) -> bytes:
    """Return a whole HTTP request."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": num_output,
        "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + payload


async def _all_at_once(port: int, requests: Sequence[bytes]) -> tuple[float, list[float], list[int]]:
    loop = asyncio.get_running_loop()
    answers = [Answer(request) for request in requests]
    start = time.perf_counter()
    try:
        await asyncio.gather(*(loop.create_connection(lambda own=answer: own, HOST, port) for answer in answers))
    except OSError as error:
        raise BenchmarkError(f"the server on port {port} takes no connections: {error}") from error
    await asyncio.gather(*(answer.done for answer in answers))
    wall_s = time.perf_counter() - start
    counts = [answer.num_events() for answer in answers]
    return wall_s, [answer.first_s - start for answer in answers if answer.first_s is not None], counts
