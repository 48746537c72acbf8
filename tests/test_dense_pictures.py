"""Measurements of training steps under heads of pictures, on a small Swin."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import dense, dense2d

pytest.importorskip("transformers")
DETECTORS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision"))
    for name in ("mask_rcnn", "retinanet")
]


@pytest.mark.parametrize("head", ["light", *DETECTORS])
def test_highways_take_less_memory_under_each_head(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 2}
    for name, value in {"SIDE": 64, "SWIN_T": small, "METHODS_OF_ROWS": ("full", "linear", "e3va")}.items():
        monkeypatch.setattr(dense2d, name, value)
    arguments = [f"swin_{head}", "--batch-size", "2", "--rounds", "1", "--output", str(tmp_path / "table")]
    assert dense.main(arguments) == 0
    (rows,) = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["tables"].values()
    full, linear, e3va = rows
    assert full["step_mib"] > e3va["step_mib"] > linear["step_mib"] > 0
    assert full["trainable"] > e3va["trainable"] > linear["trainable"]
    assert min(row["cpu_seconds"][0] for row in rows) > 0
