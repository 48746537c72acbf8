"""Every message that the troubleshooting page quotes is one that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.conftest import ROOT
from tests.docs.pages import DOCS

FIELD = "\0"  # what a message fills in
SOURCES = [*(ROOT / "pointadapterx").rglob("*.py"), *(ROOT / "datasets").rglob("*.py"), ROOT / "setup.py"]
SOURCES += (ROOT / "extensions").glob("*.py")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, with :data:`FIELD` where something is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else FIELD for part in node.values]
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_quoted_messages_occur_in_the_code() -> None:
    """In the page ``...`` stands for what a message fills in."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 50
    known = {text for path in SOURCES for text in texts(ast.parse(path.read_text(encoding="utf-8")))}
    known.add((ROOT / "Makefile").read_text(encoding="utf-8"))
    missing = []
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
        if not any(pattern.search(text) for text in known):
            missing.append(message)
    assert missing == []
