"""The tutorial of labels for points, followed in one process."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.labelled_clouds import read_labelled
from tests.docs.pages import DOCS
from tests.docs.transcript import BLOCK, WIDTH, aligned

PAGE = DOCS / "segmentation_tutorial.md"
FEWER = {"train": ["train.epochs=2", "train.warmup_epochs=0", "eval.every=2"]}
"""What shortens a command: the steps are to be followed, and nothing is judged by the figures."""


@pytest.mark.slow
def test_the_tutorial_of_labels_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    for language, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", content)
            assert name is not None
            Path(name[1]).write_text(content, encoding="utf-8")
            continue
        for part in re.split(r"^(?=\$ )", content, flags=re.MULTILINE)[1:]:
            command, *expected = part.splitlines()
            capfd.readouterr()
            _run(shlex.split(command.removeprefix("$ ")), command.removeprefix("$ "))
            printed = [line.rstrip() for line in capfd.readouterr().out.splitlines()]
            aligned(expected, printed)
    found = read_labelled(Path("found/30062.ply"), LabelField())
    np.testing.assert_allclose(found.points, np.loadtxt("new/30062.xyz"))
    assert found.names == {0: "body", 1: "stud", 2: "tube"}


def _run(words: list[str], command: str) -> None:
    match words:
        case ["python", script]:
            runpy.run_path(script)
        case ["pointadapterx", *arguments]:
            assert main([*arguments, *FEWER.get(arguments[0], [])]) == 0
        case _:
            subprocess.run(["bash", "-c", command], check=True)
