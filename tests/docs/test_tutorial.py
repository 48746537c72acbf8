"""The tutorial, followed by someone who has nothing but the wheel."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.transcript import TUTORIAL, aligned, follow

PACKAGED = ("pointadapterx", "datasets", "extensions", "cfgs")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
WHERE = """
import pathlib, sys
import pointadapterx, pointadapterx.cfgs, pointadapterx.datasets, pointadapterx.extensions
for module in (pointadapterx, pointadapterx.cfgs, pointadapterx.datasets, pointadapterx.extensions):
    assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), module
print(pointadapterx.ops.implementation("cpu"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with the wheel's content first on the path; without a compiler, so that the plain ops serve."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    for name in PACKAGED:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "build_info.json", "__pycache__")
        )
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    environment = {**os.environ, "CXX": "/bin/false", "CC": "/bin/false"}
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", folder, source], env=environment, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    shutil.rmtree(source)
    path = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(installed: dict[str, str], tmp_path: Path) -> None:
    site = installed["PYTHONPATH"]
    checked = subprocess.run(
        [sys.executable, "-c", WHERE, site],
        cwd=tmp_path,
        env={**os.environ, **installed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("reference (reason: compiling failed")
    follow(TUTORIAL.read_text(encoding="utf-8"), tmp_path, installed)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["overall_accuracy"] >= 85  # 24 clouds
    with (tmp_path / "found.csv").open(encoding="utf-8") as file:
        found = {Path(row["file"]).stem: row["class_1"] for row in csv.DictReader(file)}
    assert len(found) == 6
    assert sum(name.startswith(answer) for name, answer in found.items()) >= 5


def test_lines_are_compared_but_for_numbers() -> None:
    printed = ["epoch 1 of 20", "epoch 2 of 20", "OA 93.1"]
    assert aligned(["epoch 1 of 3", "...", "OA 100.00"], printed) == ["epoch 1 of 20", "...", "OA 93.1"]
    for wrong in (["epoch 1 of 3", "OA 1"], ["...", "mAcc 1"], ["epoch 1 of 3"]):
        with pytest.raises(AssertionError):
            aligned(wrong, printed)
