"""The schema against the published client: its operations, inputs and enums, and every field that it can ask for."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    build_schema,
    parse,
    validate,
)

from harmonia.server.graphql.schema import make_schema

CLIENT = "adaptive_sdk.graphql_client"
ROOTS = {"Query": "QueryRoot", "Mutation": "MutationRoot"}

BILLING = "nobody is billed here"
CATALOGUE = "models come from the hub or from files, not from a vendor's catalogue with licences"
EVALUATIONS = "grades are added up over all data sets of an evaluation"
ONE_ENGINE = "there is one engine, which comes with the server: no images, groups or partitions to choose"
GRADER_FILES = "custom graders are described in words; what a recipe brings is in its files"
TOOLS = "callers give tools with the chat and call them themselves"
WIDGETS = "the layout of a user interface, which is not there"

_REASONS: dict[str, str] = {
    BILLING: """
        BillingCycle BillingUsage Contract GlobalUsage.signature QueryRoot.contract
        """,
    CATALOGUE: """
        AcceptLicenseInput AdaptiveModelCatalogEntry CatalogLicense ImportAdaptiveModelInput Model.order
        Model.publisher MutationRoot.acceptLicense MutationRoot.importAdaptiveModel
        QueryRoot.discoverAdaptiveModels
        """,
    EVALUATIONS: "EvaluationResult.dataset",
    ONE_ENGINE: """
        CancelAllocationInput CustomRecipeJobDetails.harmonyImageTag InteractiveJobDetails.harmonyGroupId
        Model.nodeStatuses ModelNodeStatus MutationRoot.cancelAllocation
        MutationRoot.restartInferencePartition NodeModelStatus RestartPartitionInput
        """,
    GRADER_FILES: "CustomConfigOutput.sources GraderSourceOutput",
    TOOLS: """
        CreateToolProviderInput ModelService.toolProviders MutationRoot.createToolProvider
        MutationRoot.deleteToolProvider MutationRoot.updateToolProvider Project.toolProviders Protocol
        QueryRoot.toolProvider ToolProvider UpdateModelService.toolProviders UpdateToolProviderInput
        """,
    WIDGETS: """
        Project.widgets ProjectCreate.widgets ProjectUpdate.widgets UnitConfig UnitConfigInput UnitPosition
        Widget WidgetInput
        """,
}
ABSENT = {name: why for why, names in _REASONS.items() for name in names.split()}
"""By type, or by type and field: why it is not there."""


def source_of(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(f"{CLIENT}.{module}")))


@cache
def schema() -> GraphQLSchema:
    return build_schema(make_schema().as_str())


def fields_of(node: ast.ClassDef) -> Iterator[tuple[str, dict[str, str]]]:
    """Fields that a class of the client's query builder names, each with the types of its arguments."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Call):
            yield ast.literal_eval(item.value.args[0]), {}
        if not isinstance(item, ast.FunctionDef):
            continue
        told = [sub for sub in ast.walk(item) if isinstance(sub, ast.Return) and isinstance(sub.value, ast.Call)]
        name = next((name_in(each.value) for each in told if isinstance(each.value, ast.Call)), None)
        if name is not None:
            yield name, arguments_of(item)


def name_in(call: ast.Call) -> str | None:
    given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "field_name")]
    return given[0].value if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else None


def arguments_of(method: ast.FunctionDef) -> dict[str, str]:
    for item in method.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Dict):
            return {
                ast.literal_eval(key): ast.literal_eval(value.values[0])
                for key, value in zip(item.value.keys, item.value.values, strict=True)
                if key is not None and isinstance(value, ast.Dict)
            }
    return {}


def wanted() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Type, field and arguments of everything that the client can ask for."""
    for module in ("custom_fields", "custom_queries", "custom_mutations"):
        for node in source_of(module).body:
            if isinstance(node, ast.ClassDef):
                name = ROOTS.get(node.name, node.name.removesuffix("Fields").removesuffix("Interface"))
                for field, arguments in fields_of(node):
                    yield name, field, arguments


def accepts(ours: object, theirs: str) -> bool:
    """Whether a variable of the client's type may stand where ours is wanted: ours may ask for less."""
    return str(ours) in (theirs, theirs.removesuffix("!"))


def lacking() -> Iterator[str]:
    for name, field, arguments in wanted():
        found = schema().type_map.get(name)
        if not isinstance(found, GraphQLObjectType | GraphQLInterfaceType):
            yield name
            continue
        if field not in found.fields:
            yield f"{name}.{field}"
            continue
        known = found.fields[field].args
        for argument, theirs in arguments.items():
            if argument not in known or not accepts(known[argument].type, theirs):
                yield f"{name}.{field}({argument}: {theirs})"


def test_all_is_there_or_it_is_said_why_not() -> None:
    missing = {*lacking(), *lacking_enums(), *lacking_inputs()}
    assert sorted(missing - ABSENT.keys()) == []
    assert sorted(ABSENT.keys() - missing) == [], "these are there, so nothing need be said of them"


def operations() -> list[str]:
    client = importlib.import_module(f"{CLIENT}.client")
    calls = (node for node in ast.walk(ast.parse(inspect.getsource(client))) if isinstance(node, ast.Call))
    found = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "gql"]
    return [each.value for each in found if isinstance(each, ast.Constant)]


def test_every_operation_is_valid() -> None:
    found = operations()
    assert len(found) > 70
    wrong = {str(error) for text in found for error in validate(schema(), parse(text))}
    assert wrong == set()


def classes(module: str, base: type) -> list[tuple[str, Any]]:
    found = vars(importlib.import_module(f"{CLIENT}.{module}")).items()
    kinds = [(name, each) for name, each in found if inspect.isclass(each) and issubclass(each, base)]
    return [(name, each) for name, each in kinds if each is not base]


def lacking_enums() -> Iterator[str]:
    for name, theirs in classes("enums", Enum):
        ours = schema().type_map.get(name)
        if ours is None:
            yield name
            continue
        assert isinstance(ours, GraphQLEnumType), name
        assert set(ours.values) == {item.value for item in theirs}, name


def lacking_inputs() -> Iterator[str]:
    base = importlib.import_module(f"{CLIENT}.base_model").BaseModel
    for name, theirs in classes("input_types", base):
        ours = schema().type_map.get(name)
        if ours is None:
            yield name
            continue
        assert isinstance(ours, GraphQLInputObjectType), name
        for python_name, field in theirs.model_fields.items():
            wire = field.alias or python_name
            if wire not in ours.fields:
                yield f"{name}.{wire}"
                continue
            own = ours.fields[wire]
            has_default = own.ast_node is not None and own.ast_node.default_value is not None
            is_wanted = isinstance(own.type, GraphQLNonNull) and not has_default
            assert field.is_required() or not is_wanted, f"{name}.{wire} may be left out"


@pytest.mark.parametrize("name", ["Query", "Mutation"])
def test_roots_have_the_names_that_the_client_gives(name: str) -> None:
    root = schema().query_type if name == "Query" else schema().mutation_type
    assert root is not None and root.name == ROOTS[name]
