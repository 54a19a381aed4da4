"""`POST /completions`."""

from __future__ import annotations

import uuid
from functools import partial

from fastapi import APIRouter, Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import Generate, TextPrompt, TokenPrompt
from harmonia.server.rest.body import read_body
from harmonia.server.rest.completion_format import CompletionChunks, Echo, completion_response
from harmonia.server.rest.context import Api
from harmonia.server.rest.exchange import Exchange, Form
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.prompts import parse_prompts
from harmonia.server.rest.sampling import sampling_params
from harmonia.server.rest.schemas import CompletionRequest, CompletionResponse
from harmonia.server.rest.target import Target

router = APIRouter(tags=["inference"])

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""
MAX_CHOICES = 4096


@router.post("/completions", **describe(CompletionRequest, CompletionResponse, streams=True))
async def create_completion(request: Request, api: Api) -> Response:
    """Continue a text, or several."""
    body = await read_body(request, CompletionRequest, api.config.server.max_body_bytes)
    prompts = parse_prompts(body.prompt, "prompt")
    _refuse_unsupported(body, len(prompts))
    echo = Echo(prompts=prompts if body.echo else (), prompt_only=body.max_tokens == 0, num_top=body.logprobs)
    target = await api.find_target(request, body)
    requests = _generates(body, prompts, echo, target)
    form = Form("cmpl", partial(completion_response, echo=echo), lambda head: CompletionChunks(head, echo))
    return await Exchange(request, api, body, target, requests).answer(form)


def _generates(
    body: CompletionRequest, prompts: tuple[TextPrompt | TokenPrompt, ...], echo: Echo, target: Target
) -> tuple[Generate, ...]:
    default = DEFAULT_MAX_TOKENS if target.max_tokens is None else target.max_tokens
    max_tokens = default if body.max_tokens is None else max(1, body.max_tokens)
    # The text of echoed token ids is known to the worker only; it comes with their log-probabilities.
    echoes_tokens = any(isinstance(prompt, TokenPrompt) for prompt in echo.prompts)
    prompt_logprobs = (body.logprobs or 0) if echo.prompts and (body.logprobs is not None or echoes_tokens) else None
    sampling = sampling_params(body, max_tokens, body.logprobs, prompt_logprobs)
    return tuple(
        Generate(
            id=uuid.uuid4().hex,
            model=target.key,
            prompt=prompt,
            sampling=sampling,
            n=body.n or 1,
            session_id=body.session_id,
            max_ttft_ms=target.max_ttft_ms if body.max_ttft_ms is None else body.max_ttft_ms,
            stream=bool(body.stream),
            num_draft_steps=target.num_draft_steps,
        )
        for prompt in prompts
    )


def _refuse_unsupported(body: CompletionRequest, num_prompts: int) -> None:
    num_choices = num_prompts * (body.n or 1)
    rules = (
        ("suffix", not body.suffix, "filling in the middle is not supported"),
        ("best_of", body.best_of in (None, body.n or 1), "must equal n; every generated answer is returned"),
        ("max_tokens", body.max_tokens != 0 or bool(body.echo), "0 makes sense with echo only"),
        ("echo", not (body.echo and body.stream and (body.n or 1) > 1), "cannot be streamed with n above 1"),
        ("n", num_choices <= MAX_CHOICES, f"prompts times n may be at most {MAX_CHOICES}, got {num_choices}"),
    )
    for field, ok, rule in rules:
        if not ok:
            raise InvalidRequestError(f"{field}: {rule}", field=field)
