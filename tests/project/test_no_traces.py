"""Nothing in the repository tells where it was made: no machine's folders, no package registry's host."""

import re

import pytest

from tests.project.tree import ROOT, files

# Written in pieces, so that this file does not contain what it looks for.
HOSTS = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("npmjs", "(org|com)"),
    ("yarnpkg", "com"),
    ("(deb|security)[.]debian", "org"),
    ("(archive|ports)[.]ubuntu", "com"),
    ("crates", "io"),
    ("proxy[.]golang", "org"),
    ("download[.]pytorch", "org"),
]
FOLDERS = ["root/", "home/[a-z]+/", "Users/[A-Za-z]+/", "work/(main|shared)", "opt/(pypi|wheels)"]
PATTERNS = [*(rf"\b{name}[.]{end}\b" for name, end in HOSTS), *(rf"(?<![\w.~-])/{folder}" for folder in FOLDERS)]
TRACE = re.compile("|".join(PATTERNS))


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in files():
        lines = (ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines()
        found += [f"{path}:{n}: {m[0]}" for n, line in enumerate(lines, 1) if (m := TRACE.search(line))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["https://" + "pypi." + "org/simple", "at /" + "root/.cache", "'/" + "home/me/x'"])
def test_traces_are_found(text: str) -> None:
    assert TRACE.search(text)


@pytest.mark.parametrize("text", ["pypi", "example.org", "https://example.org/" + "home/me/", "./" + "root/x"])
def test_other_text_passes(text: str) -> None:
    assert not TRACE.search(text)
