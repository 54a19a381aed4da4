"""The demonstration's conversation: questions over HTTP, as any client of OpenAI's interface asks them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import httpx
import msgspec
from rich.console import Console

from harmonia.protocol.base import JsonObject

QUESTIONS = ("What is the capital of France, and what is it known for?", "Which river flows through it?")
MAX_TOKENS = 160
ANSWER_TOKENS = 32
"""Enough for the longest line of the lesson, and to see what the base makes of an order."""
_TIMEOUT_S = 300.0


class Turn(msgspec.Struct, kw_only=True):
    """One answer and what it took."""

    text: str = ""
    completion_id: str = ""
    """What the server knows it by."""
    first_s: float = 0.0
    total_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    accepted_tokens: int = 0
    """Of those that a draft proposed, the right ones."""
    rejected_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token."""
        return max(0, self.completion_tokens - 1) / max(self.total_s - self.first_s, 1e-9)


class People:
    """Whoever talks to the models of a project."""

    def __init__(self, http: httpx.AsyncClient, project: str) -> None:
        self._http = http
        self._project = project

    async def ask(self, model: str, question: str, max_tokens: int = ANSWER_TOKENS) -> Turn:
        """What a model answers, greedily. httpx.HTTPError with the server's words if it does not."""
        return await self._answer(model, [{"role": "user", "content": question}], {"max_tokens": max_tokens})

    async def converse(self, model: str, console: Console) -> None:
        """Ask the two questions in one session; print the answers as they come."""
        messages: list[JsonObject] = []
        options: JsonObject = {"max_tokens": MAX_TOKENS, "session_id": str(uuid.uuid4())}
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            console.print(f"[cyan]you[/cyan]  {question}")
            console.print("[green]it[/green]   ", end="")
            turn = await self._answer(
                model,
                messages,
                options,
                lambda text: console.print(text, end="", markup=False, highlight=False, soft_wrap=True),
            )
            messages.append({"role": "assistant", "content": turn.text})
            console.print(
                f"\n[dim]{turn.completion_tokens} tokens at {turn.tokens_per_s:.1f} tokens/s, first after "
                f"{turn.first_s * 1000:.0f} ms; {turn.cached_tokens} of {turn.prompt_tokens} prompt tokens came from "
                "the cache[/dim]\n"
            )

    async def _answer(
        self,
        model: str,
        messages: list[JsonObject],
        options: JsonObject,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Turn:
        body = {
            "model": f"{self._project}/{model}",
            "messages": messages,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        turn, started = Turn(), time.perf_counter()
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                await response.aread()
                raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    text = _take(turn, msgspec.json.decode(line.removeprefix("data: ")))
                    turn.first_s = turn.first_s or (time.perf_counter() - started if text else 0.0)
                    on_text(text)
        turn.total_s = time.perf_counter() - started
        return turn


def connect(url: str, api_key: str) -> httpx.AsyncClient:
    """An HTTP client of the server."""
    headers = {"Authorization": f"Bearer {api_key}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)


def _take(turn: Turn, chunk: JsonObject) -> str:
    """Add an event to the answer; its text."""
    if "error" in chunk:
        raise httpx.HTTPError(chunk["error"]["message"])
    text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    turn.text += text
    for choice in chunk["choices"]:
        turn.completion_id = choice.get("completion_id") or turn.completion_id
    usage = chunk.get("usage")
    if usage is not None:
        turn.prompt_tokens, turn.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        turn.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        proposed = usage.get("completion_tokens_details") or {}  # only where something was
        turn.accepted_tokens = proposed.get("accepted_prediction_tokens", 0)
        turn.rejected_tokens = proposed.get("rejected_prediction_tokens", 0)
    return text
