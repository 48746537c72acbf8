"""The examples of CONTRIBUTING.md, executed as they are written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)

USE_METHOD = """
import torch
from pointadapterx.build import build_model
from pointadapterx.peft import METHODS
from tests.conftest import small_config
from tests.peft.test_methods import LABELS, steps

for kind, shape in (("point_mae", (6, 128, 3)), ("vit", (6, 3, 16, 16))):
    model = build_model(small_config("ia3", kind=kind))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, torch.randn(shape), 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"method.scales.{i}.factor" for i in range(2)} <= changed
    assert not any(name.startswith("backbone.blocks") for name in changed)
print("trained", [name for name in METHODS if name == "ia3"])
"""

USE_DATA = """
import sys
from pointadapterx.datasets import build_dataset

data = build_dataset("npz_clouds", "train", root=sys.argv[1])
print("read", len(data), data.points.shape[1], data.classes)
"""


def run(script: str, *arguments: object) -> str:
    """In a process of its own, so that the example is registered nowhere else."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_method() -> None:
    example = next(text for text in EXAMPLES if "@METHODS.register" in text)
    assert len(example.splitlines()) <= 45
    assert run(example + USE_METHOD) == "trained ['ia3']"


def test_the_data_set(tmp_path: Path) -> None:
    example = next(text for text in EXAMPLES if "@DATASETS.register" in text)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        points = rng.normal(size=(6, 64, 3)).astype(np.float32)
        np.savez(tmp_path / f"{split}.npz", points=points, labels=np.arange(6) % 3)
    assert run(example + USE_DATA, tmp_path) == "read 6 64 ['bolt', 'nut', 'washer']"
