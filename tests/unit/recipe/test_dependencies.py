"""What recipes declare, and installing it beside the environment."""

import importlib.util
import os
import sys
import time
import zipfile
from pathlib import Path

import pytest

from harmonia.client.recipe import declared, install, use_dependencies
from harmonia.client.recipe.dependencies import missing
from harmonia.errors import InvalidRequestError
from tests.unit.recipe.conftest import WriteRecipe

SCRIPT = """#!/usr/bin/env python
# /// {}
# requires-python = ">=3.11"
# dependencies = [
#   "a>=1",
#   "b",
# ]
# ///
"""


def make_wheel(folder: Path, name: str, needs: str = "") -> Path:
    """A wheel with one module, which says where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    needs = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}.py", "HERE = __file__\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return file


def test_a_folder_declares_in_the_first_place_that_it_has(write: WriteRecipe) -> None:
    folder = write({"main.py": SCRIPT.format("script")})
    assert declared(folder) == ["a>=1", "b"]
    write({"requirements.in": "from-in\n"})
    assert declared(folder) == ["from-in"]
    write(
        {
            "requirements.txt": "# all of it\nc==1  # exactly\n\n-r more/list.txt\n--no-index\n"
            "d[x]>=2,<3; sys_platform == 'linux'\n",
            "more/list.txt": "e\\\n>=1\n./here\n-e ../there\n",
        }
    )
    local = [str(folder / "more/here"), str(folder / "there")]
    assert declared(folder) == ["c==1", "e >=1", *local, "--no-index", "d[x]>=2,<3; sys_platform == 'linux'"]
    write({"pyproject.toml": "[tool.ruff]\n"})
    assert declared(folder)[0] == "c==1"
    write({"pyproject.toml": '[project]\nname = "x"\ndependencies = ["f"]\n'})
    assert declared(folder) == ["f"]
    assert declared(folder / "main.py") == ["a>=1", "b"]  # a file speaks for itself


def test_a_file_declares_in_a_comment(write: WriteRecipe) -> None:
    both = SCRIPT.format("script") + "\n" + SCRIPT.format("adaptive").replace("a>=1", "mine")
    folder = write({"both.py": both, "none.py": "x = 1\n", "quiet.py": "# /// script\n# # nothing\n# ///\n"})
    assert declared(folder / "both.py") == ["mine", "b"]
    assert declared(folder / "none.py") == declared(folder / "quiet.py") == declared(folder) == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"main.py": "# /// script\n# dependencies = [\n# ///\n"}, r"TOML in .*main.py cannot be read"),
        ({"main.py": "# /// script\n# dependencies = 'x'\n# ///\n"}, r"main.py must be a list of strings, not 'x'"),
        ({"pyproject.toml": "[project"}, r"TOML in .*pyproject.toml cannot be read"),
        ({"pyproject.toml": "[project]\ndependencies = [1]\n"}, r"must be a list of strings, not \[1\]"),
        ({"requirements.txt": "-r none.txt\n"}, r"none.txt cannot be read"),
    ],
)
def test_declarations_that_cannot_be_read(write: WriteRecipe, files: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        declared(write(files))


def test_what_is_there_is_not_installed(tmp_path: Path) -> None:
    have = ["pytest", "pytest>=8", "Pydantic_Settings", "nothing; python_version < '3'", "harmonia", "httpx[socks]>=99"]
    assert missing([*have, "pytest<1"]) == ["httpx[socks]>=99", "pytest<1"]
    assert install(have[:-1], tmp_path / "packages") is None
    assert not (tmp_path / "packages").exists()


def test_requirements_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"requirement 'a b c' cannot be read"):
        install(["a b c"], tmp_path)


def test_installed_beside_the_environment_with_what_it_needs(
    write: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "harmonia_test_lower", needs="numpy")
    make_wheel(wheels, "harmonia_test_upper", needs="harmonia_test_lower>=1")
    requirements = f"--no-index\n--find-links {wheels}\nharmonia_test_upper\n"
    recipe = write({"requirements.txt": requirements, "main.py": ""})
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", list(path))
    target = use_dependencies(recipe, "main.py", tmp_path / "packages")
    assert target and target.parent == tmp_path / "packages"
    assert {file.name for file in target.glob("*.py")} == {"harmonia_test_lower.py", "harmonia_test_upper.py"}
    assert not (target / "numpy").exists()  # the environment has it
    found = importlib.util.find_spec("harmonia_test_upper")
    assert found and found.origin and Path(found.origin).parent == target
    assert use_dependencies(recipe, "main.py", tmp_path / "packages") is None  # this process has it now
    before = target.stat().st_mtime_ns
    sys.path[:] = path
    assert use_dependencies(recipe, "main.py", tmp_path / "packages") == target
    assert target.stat().st_mtime_ns == before
    assert [folder.name for folder in (tmp_path / "packages").iterdir()] == [target.name]


def test_a_path_is_installed_again_when_it_changes(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "harmonia_test_path")
    first = install([str(wheel)], tmp_path / "packages")
    assert first and first == install([str(wheel)], tmp_path / "packages")
    os.utime(wheel, ns=(1, 1))
    assert install([str(wheel)], tmp_path / "packages") != first


def test_what_cannot_be_installed_is_named(tmp_path: Path) -> None:
    wanted = ["pytest", "does-not-exist @ file:///nowhere"]
    with pytest.raises(InvalidRequestError, match=r"does-not-exist @ file:///nowhere cannot be installed:\n.*nowhere"):
        install(wanted, tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


def test_installing_takes_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVE_INSTALL_TIMEOUT_SECS", "0.05")
    started = time.monotonic()
    with pytest.raises(InvalidRequestError, match=r"took longer than 0.05 s; .*ADAPTIVE_INSTALL_TIMEOUT_SECS"):
        install([str(make_wheel(tmp_path, "harmonia_test_slow"))], tmp_path / "packages")
    assert time.monotonic() - started < 10
