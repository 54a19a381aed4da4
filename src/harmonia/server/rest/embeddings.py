"""`POST /embeddings`."""

from __future__ import annotations

import base64
import math
import sys
import uuid
from array import array

from fastapi import APIRouter, Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import Embed, Embedded
from harmonia.router import ELSEWHERE, Attempts
from harmonia.server.rest.body import read_body
from harmonia.server.rest.caller import Caller
from harmonia.server.rest.context import Api, Context, json_response
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.prompts import check_tokens, parse_prompts
from harmonia.server.rest.schemas import EmbeddingRequest, EmbeddingResponse
from harmonia.server.rest.schemas.embeddings import EmbeddingItem
from harmonia.server.rest.schemas.fields import UsageReport

router = APIRouter(tags=["inference"])


@router.post("/embeddings", **describe(EmbeddingRequest, EmbeddingResponse))
async def create_embeddings(request: Request, api: Api) -> Response:
    """Turn texts into vectors of length 1."""
    body = await read_body(request, EmbeddingRequest, api.config.server.max_body_bytes)
    prompts = parse_prompts(body.input, "input")
    target = await api.find_target(request, body)
    if target.external is not None:
        raise InvalidRequestError(f"model: {target.shown} is an external model, which gives no vectors", field="model")
    request.state.model = target.shown
    timeout_s = api.config.server.timeout_seconds
    caller = Caller(request, timeout_s)
    max_ttft_ms = target.max_ttft_ms if body.max_ttft_ms is None else body.max_ttft_ms
    message = Embed(id=uuid.uuid4().hex, model=target.key, prompts=prompts, max_ttft_ms=max_ttft_ms)
    try:
        # The caller's own limit ends the wait; the client's lies just above it and never fires first.
        answer = await caller.wait_for(_embedded(request, api, message, timeout_s + 1))
    finally:
        caller.close()
    as_text = (body.encoding_format or "float").lower() == "base64"
    items = [
        EmbeddingItem(index=index, embedding=_embedding(vector, body.dimensions, as_text))
        for index, vector in enumerate(answer.vectors)
    ]
    num_tokens = answer.usage.prompt_tokens
    usage = UsageReport(prompt_tokens=num_tokens, completion_tokens=0, total_tokens=num_tokens)
    return json_response(EmbeddingResponse(data=items, model=target.shown, usage=usage))


async def _embedded(request: Request, api: Context, message: Embed, timeout_s: float) -> Embedded:
    attempts = Attempts(api.router, message.model)
    while True:
        replica = attempts.next()
        request.state.pool = api.pool_of(replica.replica)
        check_tokens(message.prompts, replica.description.vocab_size, "input")
        try:
            return await api.router.embed(replica, message, timeout_s)
        except ELSEWHERE as error:
            attempts.failed(replica, error)


def _embedding(raw: bytes, dimensions: int | None, as_text: bool) -> list[float] | str:
    vector = array("f", raw)
    if sys.byteorder == "big":
        vector.byteswap()
    if dimensions is not None:
        vector = _shorten(vector, dimensions)
    if not as_text:
        return vector.tolist()
    if sys.byteorder == "big":
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()


def _shorten(vector: array[float], dimensions: int) -> array[float]:
    if dimensions > len(vector):
        message = f"dimensions: this model's vectors have {len(vector)} components, got {dimensions}"
        raise InvalidRequestError(message, field="dimensions")
    kept = vector[:dimensions]
    norm = math.sqrt(math.fsum(component * component for component in kept))
    return array("f", [component / norm for component in kept]) if norm > 0 else kept
