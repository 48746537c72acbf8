"""The notebook runs from its first cell to its last, and is committed with its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS

NOTEBOOK = DOCS / "notebooks" / "quickstart.ipynb"
LARGEST = 100_000  # bytes


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="comes with nbclient, of the extra dev")
    nbclient = pytest.importorskip("nbclient", reason="is of the extra dev")
    pytest.importorskip("ipykernel", reason="is of the extra dev")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert all(committed)
    nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()  # raises where a cell does
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert "trained parameters: 52,999 (1.87 %)" in printed


def test_it_is_small_and_holds_no_path_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert "/tmp/" not in text
    assert "/home/" not in text
