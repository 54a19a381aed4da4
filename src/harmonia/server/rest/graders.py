"""Graders at work: on recorded completions, or on conversations that come along."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.server.rest.body import read_body
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.schemas.fields import RequestModel, ResponseModel

router = APIRouter(prefix="/projects/{project}/graders", tags=["graders"])

_encode = msgspec.json.Encoder().encode


class GradeRequest(RequestModel, kw_only=True):
    """What is graded: completions by id, whose scores are kept, or threads, of which nothing is kept.

    A thread is a list of turns with `role` and `content`, or an object with `messages`, `completion` and `metadata`.
    """

    completions: list[uuid.UUID] | None = None
    threads: list[Any] | None = None


class GradeResponse(ResponseModel, kw_only=True):
    """By completion or thread, in order, what the grader made of it: `value` and `reasoning`, or an `error` and its
    `code`; `ignored` says that the grader left it out. `score_id`: of the score that was kept.
    """

    grades: list[dict[str, Any]]


@router.post("/{grader:path}/grade", **describe(GradeRequest, GradeResponse))
async def grade(project: str, grader: str, request: Request, services: Server, caller: KnownCaller) -> Response:
    """Run a grader."""
    body = await read_body(request, GradeRequest, services.config.server.max_body_bytes)
    if (body.completions is None) == (body.threads is None):
        raise InvalidRequestError("give either completions or threads", field="completions")
    if body.completions is not None:
        verdicts = await services.grading.score(caller, project, grader, body.completions)
    else:
        verdicts = await services.grading.try_out(caller, project, grader, body.threads or [])
    answer = GradeResponse(grades=[msgspec.to_builtins(verdict) for verdict in verdicts])
    return Response(_encode(answer), media_type="application/json")
