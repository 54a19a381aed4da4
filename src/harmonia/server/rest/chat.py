"""`POST /chat/completions`."""

from __future__ import annotations

import uuid

import msgspec
from fastapi import APIRouter, Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import ChatPrompt, Constraint, Generate
from harmonia.server.rest.body import read_body
from harmonia.server.rest.chat_format import ChatChunks, chat_response
from harmonia.server.rest.context import Api
from harmonia.server.rest.exchange import Exchange, Form
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.prompts import chat_messages, with_system_prompt
from harmonia.server.rest.sampling import sampling_params
from harmonia.server.rest.schemas import ChatRequest, ChatResponse
from harmonia.server.rest.target import Target
from harmonia.server.rest.tools import ToolPlan, plan_tools

router = APIRouter(tags=["inference"])


@router.post("/chat/completions", **describe(ChatRequest, ChatResponse, streams=True))
async def create_chat_completion(request: Request, api: Api) -> Response:
    """Answer a conversation."""
    body = await read_body(request, ChatRequest, api.config.server.max_body_bytes)
    tools = plan_tools(body)
    target = await api.find_target(request, body)
    generate = _generate(body, tools, target)
    # OpenAI's clients name themselves; see ChatChunks for what they need.
    merging = "OpenAI/" in request.headers.get("user-agent", "")
    change = tools.forced.apply if tools.forced is not None else None
    form = Form("chatcmpl", chat_response, lambda head: ChatChunks(head, merging), change)
    return await Exchange(request, api, body, target, (generate,)).answer(form)


def _generate(body: ChatRequest, tools: ToolPlan, target: Target) -> Generate:
    _refuse_unsupported(body)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = target.max_tokens if asked is None else asked
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    constraint = _constraint(body)
    if tools.constraint is not None:
        if constraint is not None:
            message = "tool_choice: a forced call cannot be combined with response_format or constrained_decoding"
            raise InvalidRequestError(message, field="tool_choice")
        constraint = tools.constraint
    return Generate(
        id=uuid.uuid4().hex,
        model=target.key,
        prompt=ChatPrompt(
            messages=with_system_prompt(chat_messages(body.messages), target.system_prompt),
            tools=tools.tools,
            template_args=body.chat_template_kwargs or {},
        ),
        sampling=sampling_params(body, max_tokens, logprobs),
        n=body.n or 1,
        constraint=constraint,
        session_id=body.session_id,
        max_ttft_ms=target.max_ttft_ms if body.max_ttft_ms is None else body.max_ttft_ms,
        parse_tools=tools.parse,
        stream=bool(body.stream),
        num_draft_steps=target.num_draft_steps,
    )


def _refuse_unsupported(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs: needs logprobs to be true", field="top_logprobs")


def _constraint(body: ChatRequest) -> Constraint | None:
    wanted, grammar = body.response_format, body.constrained_decoding
    if grammar is not None:
        if wanted is not None and wanted.type != "text":
            message = "constrained_decoding: cannot be combined with response_format"
            raise InvalidRequestError(message, field="constrained_decoding")
        kind = "json_schema" if grammar.format == "json" else grammar.format
        return Constraint(kind=kind, source=grammar.schema)
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Constraint(kind="json_object")
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        field = "response_format.json_schema.schema"
        raise InvalidRequestError(f"{field}: missing, and type is json_schema", field=field)
    return Constraint(kind="json_schema", source=_json_text(wanted.json_schema.schema))


def _json_text(schema: dict[str, object]) -> str:
    try:
        return msgspec.json.encode(schema).decode()
    except OverflowError as error:
        field = "response_format.json_schema.schema"
        raise InvalidRequestError(f"{field}: holds an integer of more than 64 bits", field=field) from error
