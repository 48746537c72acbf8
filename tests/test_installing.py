"""Nobody is told to install what no index has."""

from __future__ import annotations

import re
import sys

import pytest

from pointadapterx.optional import REQUIREMENTS, install_command
from tests.conftest import ROOT

TEXTS = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")),
    *(path for folder in ("pointadapterx", "datasets") for path in (ROOT / folder).rglob("*.py")),
]


def test_commands_name_packages_of_the_extras() -> None:
    assert install_command("matplotlib", "open3d") == "pip install matplotlib open3d"
    assert install_command("laspy") == "pip install 'laspy[lazrs]'"
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is of Python 3.11")
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    known = {re.split("[<>=]", requirement)[0] for extra in extras.values() for requirement in extra}
    assert set(REQUIREMENTS.values()) <= known


def test_no_page_and_no_message_asks_an_index_for_the_project() -> None:
    asks = re.compile(r"pip install ['\"]?pointadapterx")
    allowed = {ROOT / "docs" / "install.md"}  # says that it finds nothing
    assert [str(path) for path in TEXTS if path not in allowed and asks.search(path.read_text(encoding="utf-8"))] == []
