"""The schema, and the route that serves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from fastapi import APIRouter, Request
from graphql import ExecutionResult as GraphQLResult
from graphql import GraphQLError
from strawberry import Schema
from strawberry.extensions import SchemaExtension
from strawberry.fastapi import GraphQLRouter
from strawberry.tools import merge_types
from strawberry.types import ExecutionResult

from harmonia.errors import EntityNotFoundError, HarmoniaError
from harmonia.log import get_logger
from harmonia.server.graphql.context import Context
from harmonia.server.graphql.people import PeopleMutation, PeopleQuery
from harmonia.server.graphql.projects import ProjectMutation, ProjectQuery
from harmonia.server.graphql.scalars import CONFIG
from harmonia.server.services.access import bearer
from harmonia.server.services.services import Services

PATH = "/api/graphql"

log = get_logger(__name__)

QUERIES = (PeopleQuery, ProjectQuery)
MUTATIONS = (PeopleMutation, ProjectMutation)


class _Errors(SchemaExtension):
    """What went wrong in words for the caller; bugs go to the log, and the caller hears that there was one."""

    def on_operation(self) -> Iterator[None]:
        yield
        result = self.execution_context.result
        if isinstance(result, ExecutionResult | GraphQLResult) and result.errors:
            result.errors = [_told(error) for error in result.errors]


def _told(error: GraphQLError) -> GraphQLError:
    original = error.original_error
    if original is None:
        return error  # the query itself is wrong
    if isinstance(original, EntityNotFoundError):
        message = f"EntityNotFound: {original.message}"
    elif isinstance(original, HarmoniaError):
        message = original.message
    else:
        log.error("a resolver failed", exc_info=original)
        message = "the server met an error of its own; its log has the trace"
    extensions = {"code": original.code} if isinstance(original, HarmoniaError) else None
    return GraphQLError(message, error.nodes, error.source, error.positions, error.path, None, extensions)


def make_schema() -> Schema:
    """All areas in one schema."""
    query, mutation = merge_types("QueryRoot", QUERIES), merge_types("MutationRoot", MUTATIONS)
    return Schema(query=query, mutation=mutation, config=CONFIG, extensions=[_Errors])


def make_router(services: Services) -> APIRouter:
    """`POST /api/graphql`; callers without a valid key get 401 before anything runs."""

    async def context(request: Request) -> Context:
        caller = await services.access.caller(bearer(request.headers.get("authorization")))
        return Context(services, caller)

    getter: Callable[..., Awaitable[Context]] = context
    return GraphQLRouter(
        make_schema(), path=PATH, context_getter=getter, graphql_ide=None, multipart_uploads_enabled=True
    )
