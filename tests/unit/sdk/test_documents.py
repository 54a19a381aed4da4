"""What the client asks is what the server offers, and the synchronous client is the asynchronous one."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

from graphql import build_schema, parse, validate

from harmonia.sdk import operations
from harmonia.sdk.operations.base import Operation
from harmonia.server.graphql.schema import make_schema
from tests.project.tree import ROOT


def every_operation() -> list[Operation[object]]:
    """All operations of all areas."""
    names = [module.name for module in pkgutil.iter_modules(operations.__path__)]
    modules = [importlib.import_module(f"{operations.__name__}.{name}") for name in names]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Operation)]


def test_every_document_fits_the_schema() -> None:
    schema = build_schema(make_schema().as_str())
    wrong = [
        f"{operation.field}: {error.message}"
        for operation in every_operation()
        for error in validate(schema, parse(operation.document))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_synchronous_client_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/_synchronous.py", tmp_path], check=True)
    kept = ROOT / "src/harmonia/sdk/sync"
    for made in sorted(tmp_path.glob("*.py")):
        assert made.read_text() == (kept / made.name).read_text(), "run scripts/generate"
    assert {file.name for file in kept.glob("*.py")} == {*(file.name for file in tmp_path.glob("*.py")), "__init__.py"}
