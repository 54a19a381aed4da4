"""The schema, and the route that serves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from fastapi import APIRouter, Request
from graphql import DefinitionNode, FieldNode, GraphQLError, OperationDefinitionNode
from graphql import ExecutionResult as GraphQLResult
from sqlalchemy.exc import IntegrityError
from strawberry import Schema
from strawberry.extensions import SchemaExtension
from strawberry.tools import merge_types
from strawberry.types import ExecutionContext, ExecutionResult

from harmonia.errors import EntityNotFoundError, HarmoniaError
from harmonia.log import get_logger
from harmonia.server.db.database import CONFLICT
from harmonia.server.graphql.abtests import AbTestMutation, AbTestQuery
from harmonia.server.graphql.api_keys import ApiKeyMutation, ApiKeyQuery
from harmonia.server.graphql.audit import AuditQuery
from harmonia.server.graphql.compute import ComputeMutation, ComputeQuery
from harmonia.server.graphql.context import Context
from harmonia.server.graphql.datasets import DatasetMutation, DatasetQuery
from harmonia.server.graphql.deployments import ModelMutation
from harmonia.server.graphql.filtered_datasets import FilteredDatasetMutation, FilteredDatasetQuery
from harmonia.server.graphql.graders import GraderMutation, GraderQuery
from harmonia.server.graphql.integrations import IntegrationMutation, IntegrationQuery
from harmonia.server.graphql.interaction_options import InteractionOptionsQuery
from harmonia.server.graphql.interactions import InteractionQuery
from harmonia.server.graphql.job_reports import JobReportMutation
from harmonia.server.graphql.job_search import JobSearchQuery
from harmonia.server.graphql.jobs import JobMutation, JobQuery
from harmonia.server.graphql.limits import LIMITS, LimitedRouter
from harmonia.server.graphql.meta import MetaQuery
from harmonia.server.graphql.metrics import MetricMutation, MetricQuery
from harmonia.server.graphql.models import ModelQuery
from harmonia.server.graphql.monitoring import MonitoringMutation, MonitoringQuery
from harmonia.server.graphql.people import PeopleMutation, PeopleQuery
from harmonia.server.graphql.projects import ProjectMutation, ProjectQuery
from harmonia.server.graphql.recipes import RecipeMutation, RecipeQuery
from harmonia.server.graphql.remote_envs import RemoteEnvMutation, RemoteEnvQuery
from harmonia.server.graphql.scalars import CONFIG
from harmonia.server.graphql.selections import SelectionMutation, SelectionQuery
from harmonia.server.graphql.system_prompts import SystemPromptMutation, SystemPromptQuery
from harmonia.server.graphql.usage import UsageQuery
from harmonia.server.rest.callers import caller_of
from harmonia.server.services.services import Services

PATH = "/api/graphql"

log = get_logger(__name__)

QUERIES = (
    MetaQuery,
    AbTestQuery,
    InteractionQuery,
    MetricQuery,
    PeopleQuery,
    ApiKeyQuery,
    AuditQuery,
    ProjectQuery,
    MonitoringQuery,
    RecipeQuery,
    JobQuery,
    ModelQuery,
    ComputeQuery,
    DatasetQuery,
    FilteredDatasetQuery,
    InteractionOptionsQuery,
    SelectionQuery,
    GraderQuery,
    RemoteEnvQuery,
    IntegrationQuery,
    UsageQuery,
    JobSearchQuery,
    SystemPromptQuery,
)
MUTATIONS = (
    AbTestMutation,
    MetricMutation,
    PeopleMutation,
    ApiKeyMutation,
    ProjectMutation,
    MonitoringMutation,
    RecipeMutation,
    JobMutation,
    JobReportMutation,
    ModelMutation,
    ComputeMutation,
    DatasetMutation,
    FilteredDatasetMutation,
    SelectionMutation,
    GraderMutation,
    RemoteEnvMutation,
    IntegrationMutation,
    SystemPromptMutation,
)


class _Errors(SchemaExtension):
    """What went wrong in words for the caller; bugs go to the log, and the caller hears that there was one."""

    def on_operation(self) -> Iterator[None]:
        yield
        result = self.execution_context.result
        if isinstance(result, ExecutionResult | GraphQLResult) and result.errors:
            result.errors = [_told(error) for error in result.errors]


class _Operation(SchemaExtension):
    """Tells the metrics which field of the schema was asked for. Names that callers make up would have no end."""

    def on_execute(self) -> Iterator[None]:
        context, document = self.execution_context.context, self.execution_context.graphql_document
        fields = [] if document is None else [_first_field(node) for node in document.definitions]
        context.request.state.graphql_operation = next((name for name in fields if name), "")
        yield


def _first_field(node: DefinitionNode) -> str:
    if not isinstance(node, OperationDefinitionNode):
        return ""
    return next((item.name.value for item in node.selection_set.selections if isinstance(item, FieldNode)), "")


class _Schema(Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Write nothing: the text of a query holds what callers keep secret, and `_Errors` logs what is a bug."""


def _told(error: GraphQLError) -> GraphQLError:
    original = error.original_error
    if original is None or isinstance(original, GraphQLError):
        return error  # the query itself is wrong, or its variables
    if isinstance(original, EntityNotFoundError):
        message = f"EntityNotFound: {original.message}"
    elif isinstance(original, HarmoniaError):
        message = original.message
    elif isinstance(original, RecursionError):
        message = "the document is nested too deeply"
    elif isinstance(original, IntegrityError):
        message = CONFLICT
    else:
        log.error("a resolver failed", exc_info=original)
        message = "the server met an error of its own; its log has the trace"
    extensions = {"code": original.code} if isinstance(original, HarmoniaError) else None
    return GraphQLError(message, error.nodes, error.source, error.positions, error.path, None, extensions)


def make_schema() -> Schema:
    """All areas in one schema."""
    query, mutation = merge_types("QueryRoot", QUERIES), merge_types("MutationRoot", MUTATIONS)
    return _Schema(query=query, mutation=mutation, config=CONFIG, extensions=[_Errors, _Operation, *LIMITS])


def make_router(services: Services) -> APIRouter:
    """`POST /api/graphql`; callers without a valid key get 401 before anything runs."""

    async def context(request: Request) -> Context:
        return Context(services, await caller_of(services, request))

    getter: Callable[..., Awaitable[Context]] = context
    return LimitedRouter(
        make_schema(),
        path=PATH,
        context_getter=getter,
        graphql_ide=None,
        allow_queries_via_get=False,
        multipart_uploads_enabled=True,
    )
