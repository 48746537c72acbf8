"""The blocks of code in the documentation's pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

DOCS = ROOT / "docs"
CARDS = ROOT / "pointadapterx" / "weights"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"), *CARDS.glob("*.md")])


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: relative to the repository.
        language: such as ``sh``.
        text: without the fences.
    """

    page: str
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page that name a language."""
    found = re.findall(r"^```([a-z]+)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(path.relative_to(ROOT).as_posix(), language, text) for language, text in found]


def commands(block: Block) -> list[str]:
    """The commands of a shell block, each on one line without its comment; of a console block those behind ``$``."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    stripped = (re.sub(r"\s+# .*|^# .*", "", line) for line in lines)
    return [" ".join(line.split()) for line in stripped if line.strip()]
