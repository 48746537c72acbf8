"""The reports in the documentation are what their CSVs give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pointadapterx.cli import main
from tests.conftest import ROOT

CSVS = sorted((ROOT / "docs" / "results").glob("*/results.csv"))


def test_there_are_results() -> None:
    assert CSVS


@pytest.mark.parametrize("path", CSVS, ids=lambda path: path.parent.name)
def test_reports_are_rebuilt_from_their_csv_alone(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copy(path, tmp_path)
    assert main(["compare", "--report", str(tmp_path / path.name)]) == 0
    rebuilt, committed = (folder / "report.md" for folder in (tmp_path, path.parent))
    assert rebuilt.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
    assert {image.name for image in tmp_path.glob("*.png")} == {image.name for image in path.parent.glob("*.png")}
