"""The documentation builds without a warning, and has a page for everything it should."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from pointadapterx.peft import METHODS
from tests.conftest import ROOT
from tests.docs.pages import DOCS
from tests.mechanisms import exhaustive

FIGURES = DOCS / "figures"


def load_script(name: str) -> ModuleType:
    """A script of ``docs/figures/``."""
    sys.path.insert(0, str(FIGURES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FIGURES))


@pytest.mark.slow
@exhaustive  # make docs builds the same
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "sphinx-mathjax-offline"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    options = ["--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
    assert " ".join(options) in (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "load_config" in (tmp_path / "api" / "models.html").read_text(encoding="utf-8")


def test_source_files_that_pages_name_are_there() -> None:
    folders = ("benchmarks", "cfgs", "datasets", "docs", "extensions", "pointadapterx", "tests", "tools")
    there = [f"/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in (ROOT / folder).rglob("*.*")]
    for page in DOCS.rglob("*.md"):
        for name in re.findall(r"`([\w./-]+\.(?:py|yaml|cpp|cu))`", page.read_text(encoding="utf-8")):
            assert any(path.endswith(f"/{name}") for path in there), f"{page}: {name}"


def test_every_method_has_a_page_in_the_index() -> None:
    index = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"]({name}.md)" in index
        page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert f"(figures/{name}.svg)" in page
        for part in ("## Cost", "## Keys", "## When to use it", "## Source"):
            assert part in page, f"{name}: {part}"
        for key in METHODS[name].Options.model_fields.keys() - {"name"}:
            assert f"`{key}`" in page, f"{name} has the key {key}"
        assert "$$" in page


def test_costs_of_the_method_pages_are_the_committed_ones() -> None:
    costs = load_script("costs")
    index = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    assert costs.field() in index, "run: python docs/figures/costs.py"
    assert costs.measured() in index, "run: python docs/figures/costs.py"
    for name in METHODS:
        page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert costs.table(name) in page, "run: python docs/figures/costs.py"


@pytest.mark.parametrize("script", ["results", "methods", "speed"])
def test_figures_are_what_their_scripts_draw(script: str) -> None:
    drawn = load_script(script).pictures()
    assert drawn
    for path, text in drawn.items():
        assert path.read_text(encoding="utf-8") == text, f"run: python docs/figures/{script}.py"


def test_drawings_are_described_and_suit_dark_pages() -> None:
    drawings = [*FIGURES.glob("*.svg"), *(DOCS / "methods" / "figures").glob("*.svg")]
    assert len(drawings) > len(METHODS)
    for path in drawings:
        text = path.read_text(encoding="utf-8")
        assert "<title>" in text, path
        assert "@media (prefers-color-scheme:dark)" in text, path


def test_the_first_picture_shows_what_a_model_answers() -> None:
    hero = load_script("hero")
    points = np.random.default_rng(0).normal(size=(256, 3))
    text = hero.draw(hero.Answer(points, ["wheel", "plate"], [0.8, 0.2], np.sign(points[:, 1]), 1.9))
    tree = ElementTree.fromstring(text)
    words = {element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"wheel", "80 %", "plate", "20 %", "1.90 % of the parameters"} <= words
    assert text.count("h0") == 2 * len(points)


def test_the_picture_of_parts_has_truth_prediction_and_errors() -> None:
    parts = load_script("parts")
    points = np.random.default_rng(0).normal(size=(50, 3))
    truth, found = np.array(["stud", "flat"] * 25), np.array(["stud"] * 50)
    text = parts.draw([parts.Labelled("brick 3001", points, truth, found)], 50.0)
    words = {element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
    assert {"truth", "prediction", "errors", "brick 3001", "stud", "flat", "wrong (50 % of all test points)"} <= words
    assert text.count("h0") == 3 * len(points)
    errors = [line for line in text.splitlines() if parts.WRONG in line]
    assert sum(line.count("h0") for line in errors) == 25


def test_links_to_files_lead_somewhere() -> None:
    """Also in pages that the site does not have."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{page}: {target}"
