"""What a recipe needs to have installed: found where it says so, installed beside the environment, never into it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger

log = get_logger(__name__)

INSTALL_TIMEOUT_SECS = 300
"""Longest time for installing, unless ADAPTIVE_INSTALL_TIMEOUT_SECS says otherwise."""

_OURS = {"harmonia": "harmonia", "adaptive-harmony": "adaptive_harmony", "harmony-client": "harmony_client"}
"""Distributions that are never installed for a recipe, since it runs on this one: each with the package to import."""
_BLOCK = re.compile(
    r"^# /// (?P<kind>adaptive|script)[ \t]*$\n(?P<lines>(?:^#(?:| .*)$\n)+?)^# ///[ \t]*$", re.MULTILINE
)
_LAST_LINES = 12


def declared(path: Path | str, entrypoint: str = "main.py") -> list[str]:
    """The requirements of a recipe, each as pip takes them.

    A folder declares them in pyproject.toml ([project] dependencies), else in requirements.txt, else in
    requirements.in, else in its entrypoint. A file declares them in a comment: `# /// script`, or `# /// adaptive`.
    """
    given = Path(path).expanduser()
    if not given.is_dir():
        return script_requirements(given) or []
    listed = _project_requirements(given / "pyproject.toml")
    if listed is None:
        lists = (given / "requirements.txt", given / "requirements.in")
        found = next((file for file in lists if file.is_file()), None)
        listed = None if found is None else _listed_requirements(found)
    if listed is None:
        listed = script_requirements(given / entrypoint)
    return listed or []


def script_requirements(file: Path) -> list[str] | None:
    """The `dependencies` in a file's `# /// adaptive` or `# /// script` block; None without one."""
    blocks = {match["kind"]: match["lines"] for match in _BLOCK.finditer(_read(file) if file.is_file() else "")}
    block = blocks.get("adaptive", blocks.get("script"))
    if block is None:
        return None
    toml = "".join(line[2:] if line.startswith("# ") else line[1:] for line in block.splitlines(keepends=True))
    return _requirements(file, _toml(file, toml).get("dependencies"))


def missing(requirements: Sequence[str]) -> list[str]:
    """Those that this environment does not satisfy. InvalidRequestError for one that cannot be read."""
    return [requirement for requirement in requirements if not _is_satisfied(requirement)]


def install(requirements: Sequence[str], folder: Path) -> Path | None:
    """Install what the environment lacks into a folder below `folder`, which is reused; None if it lacks nothing.

    Needs at most ADAPTIVE_INSTALL_TIMEOUT_SECS (300) seconds. InvalidRequestError if that does not suffice or it fails.
    """
    wanted = missing([requirement for requirement in requirements if not _is_option(requirement)])
    if not wanted:
        return None
    options = [part for requirement in requirements if _is_option(requirement) for part in shlex.split(requirement)]
    stamps = [str(_changed_ns(Path(requirement))) for requirement in sorted(wanted) if _is_path(requirement)]
    text = "\n".join([sys.version, *sorted(wanted), *options, *stamps])
    target = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        log.info("installing %s", ", ".join(wanted))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".installing-") as part:
            packages = Path(part) / "packages"
            _install(wanted, options, packages)
            packages.mkdir(exist_ok=True)
            if not target.is_dir():  # another process may have been faster
                packages.rename(target)
    return target


def use_dependencies(path: Path | str, entrypoint: str, folder: Path) -> Path | None:
    """Install what a recipe declares, as `install` does, and let it be imported in this process."""
    target = install(declared(path, entrypoint), folder)
    if target is not None and str(target) not in sys.path:
        sys.path.insert(0, str(target))
        importlib.invalidate_caches()
    return target


# ------------------------------------------------------------------------------------------------- reading


def _project_requirements(file: Path) -> list[str] | None:
    if not file.is_file():
        return None
    project = _toml(file, _read(file)).get("project")
    return _requirements(file, project.get("dependencies")) if isinstance(project, dict) else None


def _listed_requirements(file: Path) -> list[str]:
    """The lines of a requirements file, with those of the files that it includes."""
    found: list[str] = []
    for line in _read(file).replace("\\\n", " ").splitlines():
        text = re.sub(r"(^|\s)#.*$", "", line).strip()
        include = re.fullmatch(r"(?:-r\s*|--requirement[\s=]+)(.+)", text)
        editable = re.fullmatch(r"(?:-e\s*|--editable[\s=]+)(.+)", text)
        path = editable[1].strip() if editable else text
        if include:
            found += _listed_requirements(file.parent / include[1].strip())
        elif path.startswith("."):
            found.append(str((file.parent / path).resolve()))
        elif text:
            found.append(path)
    return found


def _requirements(file: Path, value: object) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidRequestError(f"dependencies in {file} must be a list of strings, not {value!r}")
    return list(value)


def _toml(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequestError(f"the TOML in {file} cannot be read: {error}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error


# --------------------------------------------------------------------------------------------- what is there


def _is_option(requirement: str) -> bool:
    return requirement.startswith("-")


def _is_satisfied(text: str) -> bool:
    if _is_path(text):
        return False
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise InvalidRequestError(f"requirement {text!r} cannot be read: {error}") from error
    return _has(requirement, "")


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "file:")) or text.endswith((".whl", ".tar.gz", ".zip"))


def _changed_ns(path: Path) -> int:
    """When something at a path has last changed; 0 if nothing is there."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)


def _has(requirement: Requirement, extra: str) -> bool:
    """Whether the environment has it; `extra` is the extra of the distribution that asks."""
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
        return True
    name = canonicalize_name(requirement.name)
    if name in _OURS:
        return _is_ours(name)
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if requirement.url or not requirement.specifier.contains(distribution.version, prereleases=True):
        return False
    needs = [Requirement(text) for text in distribution.requires or ()]
    of_extras = [(need, extra) for extra in requirement.extras for need in needs if "extra" in str(need.marker)]
    return all(_has(need, extra) for need, extra in of_extras)


def _is_ours(name: str) -> bool:
    if importlib.util.find_spec(_OURS[name]) is None:
        raise InvalidRequestError(f"the recipe needs {name!r}, which harmonia-compat provides; install that")
    return True


# ---------------------------------------------------------------------------------------------- installing


def _install(wanted: list[str], options: list[str], target: Path) -> None:
    """Install packages and what they need in turn, except for what the environment has."""
    if importlib.util.find_spec("pip") is None:
        _install_with_uv(wanted, options, target)
        return
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", *options]
    # With a target pip looks at that alone and would fetch torch again for whatever needs it. So it says first what
    # this environment lacks, and installs exactly that.
    report = target.with_name("report.json")
    _run([*pip, "--dry-run", "--report", str(report), *wanted], wanted)
    items = json.loads(report.read_bytes())["install"]
    lacking = [_pinned(item) for item in items if canonicalize_name(item["metadata"]["name"]) not in _OURS]
    if lacking:
        _run([*pip, "--no-deps", "--target", str(target), *lacking], wanted)


def _pinned(item: dict[str, Any]) -> str:
    """One entry of pip's report as a requirement."""
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    return f"{name} @ {item['download_info']['url']}" if item.get("is_direct") else f"{name}=={version}"


def _install_with_uv(wanted: list[str], options: list[str], target: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        raise InvalidRequestError(f"{', '.join(wanted)} cannot be installed: this environment has neither pip nor uv")
    pins = target.with_name("constraints.txt")
    have = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    pins.write_text("\n".join(f"{name}=={version}" for name, version in have.items()), encoding="utf-8")
    where = ["--python", sys.executable, "--target", str(target), "--constraints", str(pins)]
    _run([uv, "pip", "install", "--quiet", *options, *where, *wanted], wanted)


def _run(command: list[str], wanted: list[str]) -> None:
    limit_s = float(os.environ.get("ADAPTIVE_INSTALL_TIMEOUT_SECS") or INSTALL_TIMEOUT_SECS)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise InvalidRequestError(
            f"installing {', '.join(wanted)} took longer than {limit_s:g} s; install it yourself, or set "
            "ADAPTIVE_INSTALL_TIMEOUT_SECS"
        ) from error
    finally:
        _end(process)
    if process.returncode:
        last = "\n".join(output.strip().splitlines()[-_LAST_LINES:])
        raise InvalidRequestError(f"{', '.join(wanted)} cannot be installed:\n{last}")


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and what it has started, if it has not ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
