"""A light HTTP client: all requests at once on plain sockets, each answer a stream of events that are counted."""

import json
import select
import socket
import time
from collections.abc import Mapping, Sequence

from benchmarks.errors import BenchmarkError
from benchmarks.work import Generation

HOST = "127.0.0.1"
TIMEOUT_S = 60.0
RECEIVE_BYTES = 1 << 16
# A client that wakes for every event takes a core from the server and the engine, as one on a machine of its own would
# not. After the first event of an answer the kernel keeps what comes until there is so much of it, or no more to come.
LOW_WATER_BYTES = 1 << 14
EVENT, END = b"\ndata: ", b"\ndata: [DONE]\n"


class Answer:
    """One request on its way, and the events that came back so far."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection((HOST, port), TIMEOUT_S)
        self.socket.sendall(request)
        self.first_s: float | None = None
        """When the first event was seen."""
        self.received = bytearray()

    def receive(self) -> bool:
        """Take in what is there; false when the server has closed the connection, which it does at the end."""
        data = self.socket.recv(RECEIVE_BYTES)
        self.received += data
        if self.first_s is None and EVENT in self.received:
            self.first_s = time.perf_counter()
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LOW_WATER_BYTES)
        return bool(data)

    def num_events(self) -> int:
        """Return how many events came before the end marker; raises `BenchmarkError` where it is missing."""
        if END not in self.received:
            raise BenchmarkError(f"the server broke an answer off: {self.received[-500:].decode(errors='replace')}")
        return self.received.count(EVENT) - 1


def generate(port: int, model: str, prompts: Sequence[list[int]], num_output: int) -> Generation:
    """Run all prompts at once, greedily, each to exactly `num_output` tokens, an event for each token."""
    requests = [completion_request(model, prompt, num_output) for prompt in prompts]
    start = time.perf_counter()
    answers = [Answer(port, request) for request in requests]
    _receive_all(answers)
    wall_s = time.perf_counter() - start
    counts = {answer.num_events() for answer in answers}
    if counts != {num_output}:
        raise BenchmarkError(
            f"asked for {num_output} tokens in as many events, got {sorted(counts)}; the figure would not be comparable"
        )
    return Generation(wall_s=wall_s, tokens=[], ttft_s=[a.first_s - start for a in answers if a.first_s is not None])


def completion_request(model: str, prompt: list[int], num_output: int) -> bytes:
    """Return a whole HTTP request."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": num_output,
        "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    return post("/v1/completions", body)


def post(path: str, body: Mapping[str, object], api_key: str | None = None) -> bytes:
    """Return the bytes of a request after which the connection ends."""
    payload = json.dumps(body).encode()
    authorization = f"Authorization: Bearer {api_key}\r\n" if api_key is not None else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n{authorization}"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + payload


def _receive_all(answers: Sequence[Answer]) -> None:
    waiting = {answer.socket.fileno(): answer for answer in answers}
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    while waiting:
        for number, _ in poll.poll():
            if not waiting[number].receive():
                poll.unregister(number)
                waiting.pop(number).socket.close()
