"""Which part may import which: the contracts of pyproject.toml, and what really happens at import."""

import os
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from shutil import copytree, ignore_patterns

import grimp
import pytest

from tests.project.tree import PACKAGE, ROOT, module_name, python_files

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
CONTROL = next(c["layers"][1] for c in CONTRACTS if c["name"].startswith("The control half"))
WIDE = {**os.environ, "COLUMNS": "200"}
NEVER_IN_CONTROL = {"torch", "ray", "transformers", "numba", "triton"}


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts on the package below `source`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-logo", "--no-cache"]
    # The working folder comes first on the path of `-c`, before the installed package.
    return subprocess.run([*command, *options], cwd=source, capture_output=True, text=True, check=False, env=WIDE)


def control_modules() -> list[str]:
    """All modules of the control half; Ray's own file is imported only when chosen."""
    packages = {name.strip(" ()") for name in CONTROL.split(":")}
    names = [module_name(path) for path in python_files("src")]
    return [n for n in names if ".".join(n.split(".")[:2]) in packages and n != "harmonia.fleet.ray"]


def test_contracts_are_kept() -> None:
    done = lint(PACKAGE.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("contract", "module", "statement"),
    [
        ("Layers", "errors.py", "def f():\n    import harmonia.engine.late"),  # upward
        ("Layers", "log.py", "def f():\n    import harmonia.errors"),  # sideways
        ("Layers", "nowhere/__init__.py", ""),  # a package without a layer
        ("The control half", "server/late.py", "def f():\n    import torch"),
        ("The control half", "server/late.py", "import harmonia.engine.late"),
        ("The compute half", "engine/late.py", "def f():\n    import fastapi"),
        ("No cycles", "server/a/x.py", "import harmonia.server.late"),
    ],
)
def test_contracts_catch_what_they_forbid(tmp_path: Path, contract: str, module: str, statement: str) -> None:
    copytree(PACKAGE, tmp_path / "harmonia", ignore=ignore_patterns("__pycache__"))
    for name in ("engine/late.py", "server/late.py", module):
        file = tmp_path / "harmonia" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.touch()
    (tmp_path / "harmonia/server/late.py").write_text("import harmonia.server.a\n", encoding="utf-8")
    with (tmp_path / "harmonia" / module).open("a", encoding="utf-8") as code:
        code.write(f"\n{statement}\n")
    done = lint(tmp_path)
    assert re.search(rf"^{contract}.* BROKEN", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_modules_form_no_cycles() -> None:
    graph = grimp.build_graph("harmonia", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_control_half_starts_without_torch() -> None:
    modules = control_modules()
    assert "harmonia.errors" in modules
    code = f"import sys, {', '.join(modules)}; print(*sorted({NEVER_IN_CONTROL} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
