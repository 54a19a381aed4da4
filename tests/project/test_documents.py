"""The documents: a reader meets a command early, and no link leads nowhere."""

import re

from tests.project.tree import ROOT, files

README = ROOT / "README.md"
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)")


def test_readme_shows_a_command_on_the_first_screen() -> None:
    first = README.read_text(encoding="utf-8").splitlines()[:25]
    assert any("scripts/demo" in line for line in first)


def test_links_lead_somewhere() -> None:
    documents = [path for path in files() if path.suffix == ".md"]
    links = [(path, link) for path in documents for link in LINK.findall((ROOT / path).read_text(encoding="utf-8"))]
    broken = [f"{path}: {link}" for path, link in links if not (ROOT / path.parent / link).exists()]
    assert not broken, "\n".join(broken)
