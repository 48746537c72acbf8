"""Nobody is told to install what no index has."""

from __future__ import annotations

import re
import subprocess
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


SCRIPT = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import pointadapterx as pax
from pointadapterx import datasets, ops
from pointadapterx.config import read_config
read_config("demo")
print(ops.implementation("cpu"), datasets.__file__)
"""


def test_python_in_the_folder_of_a_checkout_takes_the_checkout() -> None:
    """Where the package is installed elsewhere, not in place."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(ROOT / "datasets" / "__init__.py"))


def test_no_page_and_no_message_asks_an_index_for_the_project() -> None:
    asks = re.compile(r"pip install ['\"]?pointadapterx")
    allowed = {ROOT / "docs" / "install.md"}  # says that it finds nothing
    assert [str(path) for path in TEXTS if path not in allowed and asks.search(path.read_text(encoding="utf-8"))] == []
