"""Models of projects behind the inference endpoints: who may ask which, and what is kept of the answers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from fastapi import Request

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.protocol.messages import TextPrompt
from harmonia.server.db.base import MAX_KEY
from harmonia.server.rest.answers import Answer, Gathered
from harmonia.server.rest.callers import caller_of
from harmonia.server.rest.prompts import parse_prompts, with_system_prompt
from harmonia.server.rest.schemas import ChatRequest, CompletionRequest
from harmonia.server.rest.schemas.fields import GenerationRequest
from harmonia.server.rest.sse import Observer
from harmonia.server.rest.target import ExternalModel, ModelRequest, Target
from harmonia.server.services.access import ProjectAccess, bearer
from harmonia.server.services.interactions.inference import AskedModel, Chosen
from harmonia.server.services.interactions.interaction import Interaction, checked_labels
from harmonia.server.services.models.deployments import PERMISSION
from harmonia.server.services.models.models import EXTERNAL, TOKENS_TO_GENERATE, num_proposals
from harmonia.server.services.models.system_prompts import filled
from harmonia.server.services.services import Services

_PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "stop",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "n",
    "tags",
)


async def project_target(services: Services, request: Request, body: ModelRequest) -> Target:
    """The model that `{project}` or `{project}/{model}` names, for a caller who may ask it."""
    project, _, model = body.model.partition("/")
    access = await _access(services, request, project)
    observe: Observer | None = None
    campaign = None
    if isinstance(body, GenerationRequest):
        campaign = body.ab_campaign
        _check(body)
    chosen = await services.inference.choose(access, model or None, campaign)
    system_prompt = _system_prompt(chosen, body) if isinstance(body, ChatRequest) else None
    if isinstance(body, GenerationRequest) and body.store is not False:
        observe = partial(_record, services, chosen, body, system_prompt)
    return Target(
        key=chosen.model.key,
        shown=chosen.name,
        max_ttft_ms=chosen.service.max_ttft_ms,
        max_tokens=chosen.model.compute.get(TOKENS_TO_GENERATE),
        system_prompt=system_prompt,
        num_draft_steps=num_proposals(chosen.model.kind, chosen.model.num_draft_steps, chosen.service.num_draft_steps),
        external=_external(services, chosen.model),
        observe=observe,
    )


def _external(services: Services, model: AskedModel) -> ExternalModel | None:
    if model.kind != EXTERNAL:
        return None
    assert model.external is not None and model.secret is not None
    return services.external.model(model.key, model.external, model.secret)


def _system_prompt(chosen: Chosen, body: ChatRequest) -> str | None:
    arguments = body.system_prompt_args or {}
    if chosen.system_prompt is not None:
        return filled(chosen.system_prompt, arguments)
    if arguments:
        message = f"system_prompt_args: {chosen.name} has no system prompt to fill; leave them out"
        raise InvalidRequestError(message, field="system_prompt_args")
    return None


async def _access(services: Services, request: Request, project: str) -> ProjectAccess:
    """One query for whoever calls with a key."""
    authorization = request.headers.get("authorization")
    try:
        if authorization is not None:
            return await services.access.in_project(bearer(authorization), project, PERMISSION)
        return await services.access.require(await caller_of(services, request), project, PERMISSION)
    except EntityNotFoundError as error:
        raise EntityNotFoundError(
            f"{error.message}; name a model as PROJECT/MODEL, or PROJECT alone for its default model", field="model"
        ) from error


def _check(body: GenerationRequest) -> None:
    """What the interaction will hold must be known to be storable before the answer is generated."""
    checked_labels(_labels(body))
    if body.user is not None and len(body.user) > MAX_KEY:
        raise InvalidRequestError(f"user: at most {MAX_KEY} characters, got {len(body.user)}", field="user")
    if body.session_id is not None:
        try:
            uuid.UUID(body.session_id)
        except ValueError as error:
            raise InvalidRequestError(
                f"session_id: must be a UUID, got {body.session_id!r}; leave it out to begin a session",
                field="session_id",
            ) from error


def _labels(body: GenerationRequest) -> Mapping[str, str]:
    return {**(body.metadata or {}), **(body.labels or {})}


# ------------------------------------------------------------------------------------------------- interactions


async def _record(
    services: Services, chosen: Chosen, body: GenerationRequest, system_prompt: str | None, gathered: Gathered
) -> None:
    """Put every answer in the line of interactions. Prompts of token ids have no text here and are left out."""
    prompts = _prompts(body, system_prompt)
    count = len(gathered.answers)
    for index, answer in enumerate(gathered.answers):
        messages = prompts[index * len(prompts) // count]
        if messages is not None:
            item = _interaction(chosen, body, gathered, index)
            await services.interaction_writer.record(Interaction(messages=messages, completion=_text(answer), **item))


def _interaction(chosen: Chosen, body: GenerationRequest, gathered: Gathered, index: int) -> dict[str, Any]:
    head = gathered.head
    given = {name: value for name in _PARAMETERS if (value := getattr(body, name, None)) is not None}
    return {
        "id": uuid.UUID(head.completion_ids[index]),
        "project_id": chosen.access.project_id,
        "model_key": chosen.service.key,
        "model_service_id": chosen.service.id,
        "model_id": chosen.model.id,
        "session_id": uuid.UUID(head.session_id),
        "user": body.user,
        "labels": _labels(body),
        "parameters": given,
        "timings": _timings(gathered, index),
        "usage": _usage(gathered, index),
        "created_by": chosen.access.caller.user_id,
        "ab_campaign_id": chosen.campaign_id,
    }


def _prompts(body: GenerationRequest, system_prompt: str | None) -> list[list[dict[str, Any]] | None]:
    """The messages of each prompt; None for token ids."""
    if isinstance(body, ChatRequest):
        return [[*with_system_prompt([_message(message) for message in body.messages], system_prompt)]]
    assert isinstance(body, CompletionRequest)
    return [
        [{"role": "user", "content": prompt.text}] if isinstance(prompt, TextPrompt) else None
        for prompt in parse_prompts(body.prompt, "prompt")
    ]


def _message(message: msgspec.Struct) -> dict[str, Any]:
    shown = {name: value for name, value in msgspec.to_builtins(message).items() if value is not None}
    return {**shown, "content": shown.get("content", "")}


def _text(answer: Answer) -> str:
    """What was answered; the calls as JSON where an answer holds nothing else."""
    if answer.text or not answer.tool_calls:
        return answer.text
    calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
    return msgspec.json.encode({"tool_calls": calls}).decode()


def _timings(gathered: Gathered, index: int) -> dict[str, float]:
    """How long it took, and how often a draft was right, if one proposed anything."""
    timings, answer = {f"{name}_ms": value for name, value in gathered.timings_ms.items()}, gathered.answers[index]
    if answer.drafted_tokens:
        timings["spec_dec_acceptance_rate"] = answer.accepted_tokens / answer.drafted_tokens
    return timings


def _usage(gathered: Gathered, index: int) -> dict[str, int]:
    """Of one answer: its prompt, its own tokens, and what a draft proposed, if one did."""
    whole, count = gathered.usage, len(gathered.answers)
    prompt = whole.prompt_tokens // len(gathered.head.choice_of)
    own = whole.completion_tokens if count == 1 else len(gathered.answers[index].token_ids)
    usage = {"prompt_tokens": prompt, "completion_tokens": own, "total_tokens": prompt + own}
    answer = gathered.answers[index]
    if answer.drafted_tokens:
        usage["accepted_prediction_tokens"] = answer.accepted_tokens
        usage["rejected_prediction_tokens"] = answer.drafted_tokens - answer.accepted_tokens
    return usage
