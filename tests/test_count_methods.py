"""The page with the counts of every method is what its command writes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from pointadapterx.adapted_model import count_parameters
from pointadapterx.build import build_model
from tests.conftest import ROOT, load_tool

PAGE = ROOT / "docs" / "results" / "parameters.md"
AGAIN = "run: python tools/count_methods.py > docs/results/parameters.md"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("count_methods")


def test_the_page_has_the_parameters_of_every_method(tool: ModuleType) -> None:
    """Its costs are left out here, since all of them take a minute."""

    def cells(row: Any) -> str:
        with torch.device("meta"):
            return tool.parameter_cells(row, count_parameters(build_model(tool.load(row))))

    committed = PAGE.read_text(encoding="utf-8").splitlines()
    wanted = tool.page(cells).splitlines()
    assert len(committed) == len(wanted), AGAIN
    for found, line in zip(committed, wanted, strict=True):
        counted = line.startswith("| `")
        assert found.startswith(line) if counted else found == line, AGAIN


@pytest.mark.parametrize("config", ["scan_pb_t50_rs_full", "scan_pb_t50_rs_e3va", "vtab/linear", "vtab/lora"])
def test_the_page_has_the_costs(tool: ModuleType, config: str) -> None:
    (row,) = (row for row in [*tool.point_mae_rows(), *tool.vit_rows()] if row.config == config)
    assert tool.line(row) in PAGE.read_text(encoding="utf-8").splitlines(), AGAIN
