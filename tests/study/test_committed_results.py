"""The reports in the documentation are what their CSVs give."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pointadapterx.commands.main import main
from tests.conftest import ROOT
from tests.mechanisms import exhaustive

RESULTS = ROOT / "docs" / "results"
CSVS = sorted(RESULTS.glob("*/results.csv"))
QUOTES = {
    ROOT / "README.md": ("published_size", "claim2d"),
    ROOT / "docs" / "results.md": ("demo", "ldraw20"),
    ROOT / "docs" / "speed.md": ("precision", "cached_views"),
    RESULTS / "ldraw20" / "README.md": ("ldraw20", "ldraw20_recipe", "ldraw20_weights"),
    RESULTS / "ldraw20_methods" / "README.md": ("ldraw20_methods", "ldraw20"),
    RESULTS / "electronics_methods" / "README.md": ("electronics_methods",),
    RESULTS / "home_methods" / "README.md": ("home_methods",),
    RESULTS / "claim2d" / "README.md": ("claim2d", "claim2d_recipe"),
    RESULTS / "published_size" / "README.md": ("published_size",),
    RESULTS / "parts" / "README.md": ("parts",),
    RESULTS / "rooms" / "README.md": ("rooms",),
    RESULTS / "vit_tiny" / "README.md": ("vit_tiny",),
}
"""Pages, and the reports whose figures they quote."""


def test_there_are_results() -> None:
    assert CSVS


LARGE = ("ldraw20", "vit_tiny", "precision", "cached_views")  # the others have every kind of table and plot too


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[exhaustive] * (path.parent.name in LARGE), id=path.parent.name) for path in CSVS],
)
def test_reports_are_rebuilt_from_their_csv_alone(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copy(path, tmp_path)
    assert main(["compare", "--report", str(tmp_path / path.name)]) == 0
    rebuilt, committed = (folder / "report.md" for folder in (tmp_path, path.parent))
    assert rebuilt.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
    assert {image.name for image in tmp_path.glob("*.png")} == {image.name for image in path.parent.glob("*.png")}


FIGURE = re.compile(r"[+−]?\d+\.\d+ (?:± \d+\.\d+|\[[+−]?\d+\.\d+, [+−]?\d+\.\d+\])")


@pytest.mark.parametrize("page", QUOTES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_quotes_is_in_its_reports(page: Path) -> None:
    """Every mean ± standard deviation and every difference [interval] of a table's row is one of that method's.

    Of the running text, one of any method's. Columns are not told apart.
    """
    reported: dict[str, set[str]] = {}
    for name in QUOTES[page]:
        for line in (RESULTS / name / "report.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("| "):
                figures = FIGURE.findall(line.replace("-", "−"))
                reported.setdefault(line.split(" | ")[0].removeprefix("| "), set()).update(figures)
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [(line.split("|")[1].strip(" (").removesuffix(", OA %)"), line) for line in lines if line.startswith("|")]
    prose = " ".join(line.strip() for line in lines if not line.startswith("|"))
    quoted = [(name, figure) for name, row in rows for figure in FIGURE.findall(row)]
    assert quoted or FIGURE.findall(prose)
    assert [(name, figure) for name, figure in quoted if figure not in reported.get(name, ())] == []
    assert set(FIGURE.findall(prose)) - set().union(*reported.values()) == set()
