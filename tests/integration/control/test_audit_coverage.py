"""Every mutation of the schema leaves an entry in the audit log, or is listed here with the reason why not."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from harmonia.config.control import ControlConfig
from harmonia.server.db.database import Database
from harmonia.server.graphql.schema import MUTATIONS
from harmonia.server.services import audit
from harmonia.server.services.services import Services

CHANGE_NOTHING = {
    "validate_function_grader": "tries code out and keeps nothing",
    "test_notification": "sends a message on trial and keeps nothing",
    "test_remote_env": "asks another server whether it is there",
    "update_job_progress": "a job tells of itself; its start and its end are changes",
    "update_monitoring_run": "a job tells of its own run",
    "log_monitoring_categorical": "measurements of a run",
}
"""By the resolver's name: why not."""


def resolvers() -> Iterator[tuple[str, FunctionType]]:
    for area in MUTATIONS:
        for field in area.__strawberry_definition__.fields:  # type: ignore[attr-defined]
            yield field.python_name, field.base_resolver.wrapped_func


def attributes_of(function: FunctionType) -> set[str]:
    """Names after a dot in a function, and names of what it calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def records(function: FunctionType, owner: object, seen: set[Any]) -> bool:
    """Whether a function, or what it calls in the services, notes a change. owner: whose method it is."""
    if function in seen:
        return False
    seen.add(function)
    names = attributes_of(function)
    known = [function.__globals__.get(name) for name in names]
    if any(item is audit.record for item in known):
        return True
    if any(isinstance(item, FunctionType) and is_ours(item) and records(item, None, seen) for item in known):
        return True
    parts = [owner, *(getattr(owner, name, None) for name in names if name in getattr(owner, "__dict__", {}))]
    return any(records(method, part, seen) for part in parts for method in methods(part, names))


def methods(part: object, names: set[str]) -> Iterator[FunctionType]:
    if is_ours(type(part)):
        found = (inspect.getattr_static(type(part), name, None) for name in names)
        yield from (method for method in found if isinstance(method, FunctionType))


def is_ours(item: Any) -> bool:
    return str(item.__module__).startswith("harmonia.server")


async def test_every_mutation_leaves_an_entry(tmp_path: Path) -> None:
    services = Services(ControlConfig(data_dir=tmp_path), Database(f"sqlite:///{tmp_path / 'harmonia.db'}"))
    silent = {name for name, resolver in resolvers() if not records_any(resolver, services)}
    await services.database.close()
    assert silent - set(CHANGE_NOTHING) == set(), "these mutations call no service that notes the change"
    assert set(CHANGE_NOTHING) - silent == set(), "these are listed as if they changed nothing"


def records_any(resolver: FunctionType, services: Services) -> bool:
    names, seen = attributes_of(resolver), set[Any]()
    parts = [part for name, part in vars(services).items() if name in names]
    return any(records(method, part, seen) for part in parts for method in methods(part, names))
