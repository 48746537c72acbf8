"""Optional packages: messages and pages name extras that there are, and the large one is asked for by name alone."""

from __future__ import annotations

import re
import sys

import pytest

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
FILES = [
    *ROOT.glob("*.md"),
    *(p for folder in ("pointadapterx", "datasets", "docs") for p in (ROOT / folder).rglob("*")),
]


NAMED = re.compile(
    r"""pointadapterx\[([\w,]+)\]|\.\[([\w,]+)\]['"`]|\b(?:missing|need(?:_all)?)\([^)]*?, "(\w+)"[,)]"""
)


def test_every_extra_that_is_named_exists() -> None:
    """In a requirement, in a checkout's, or in the words of a message."""
    texts = [path.read_text(encoding="utf-8") for path in FILES if path.suffix in (".py", ".md", ".ipynb")]
    found = [name for text in texts for groups in NAMED.findall(text) for name in ",".join(groups).split(",") if name]
    assert set(found) <= set(EXTRAS)
    assert {"viz", "study", "scans", "umap", "mesh", "export"} <= set(found)


def test_the_page_lists_every_extra() -> None:
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert {name for name in EXTRAS if f"| `{name}` |" not in table} == set()


def test_pictures_do_not_need_a_gigabyte() -> None:
    for name in ("viz", "study"):
        assert [requirement.partition(">")[0] for requirement in EXTRAS[name]] == ["matplotlib"]
