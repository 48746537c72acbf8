"""The page about a GPU, on the CPU path: stages end as they should, and rows that fail are named."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import gpu
from pointadapterx import errors
from tests.conftest import ROOT, load_tool

CPU = torch.device("cpu")
NO_GPU = {"torch": "2.11.0", "cuda": None, "gpu": False}
A_GPU = {"torch": "2.11.0+cu130", "cuda": "13.0", "gpu": True, "name": "NVIDIA X1", "capability": "9.0"}
A_GPU |= {"processors": 132, "memory": 80 * 2**30}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    tool = load_tool("gpu_report")
    monkeypatch.setattr(tool, "probe", lambda: NO_GPU)
    monkeypatch.setattr(tool, "GRACE", 5.0)
    return tool


def stages(report: ModuleType, **programs: str) -> list[Any]:
    """Of Python programs, in which FOLDER is that of the pages."""

    def command(text: str, machine: Any, seconds: float) -> list[str]:
        return [sys.executable, "-c", text.replace("FOLDER", repr(str(machine.folder)))]

    return [report.Stage(name, 10, partial(command, text), f"{name}.md") for name, text in programs.items()]


WRITES = "open(FOLDER + '/writes.md', 'w').write('# Its title\\n\\nwhat it found')"
WAITS = """
import time
print("begun", flush=True)
try: time.sleep(60)
except KeyboardInterrupt: print("what it knew")
"""


def test_what_fails_or_takes_too_long_is_named_and_the_rest_goes_on(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    skipped = report.Stage("skipped", 1, lambda machine, seconds: "needs a GPU")
    fails = "print('FAILED tests/one.py'); raise SystemExit('the reason')"
    found = stages(report, waits=WAITS, writes=WRITES, fails=fails)
    monkeypatch.setattr(report, "STAGES", [*found, skipped])
    page = tmp_path / "results" / "gpu.md"
    assert report.main(["--output", str(page), "--seconds", "4"]) == 1
    text = page.read_text(encoding="utf-8")
    assert text.startswith("---\norphan: true\n---\n\n# Without a GPU\n")
    for name, state in {"waits": "cut", "writes": "done", "fails": "FAILED", "skipped": "skipped"}.items():
        assert f"| {name} | {state} |" in text
    assert "## writes\n\nwhat it found\n" in text
    assert "## waits\n\nIts time was up before it ended.\n\n```text\nbegun\nwhat it knew\n```\n" in text
    assert "```text\nFAILED tests/one.py\nthe reason\n```" in text
    assert "Skipped: needs a GPU." in text


def test_without_a_gpu_no_page_is_written_unless_asked_for(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "gpu.md")
    monkeypatch.setattr(report, "STAGES", stages(report, writes=WRITES))
    assert report.main([]) == 0
    assert "| writes | done |" in capsys.readouterr().out
    assert not report.PAGE.exists()
    monkeypatch.setattr(report, "probe", lambda: A_GPU)
    assert report.main([]) == 0
    assert "NVIDIA X1, compute capability 9.0, 132 multiprocessors, 80 GiB" in report.PAGE.read_text(encoding="utf-8")


def test_the_stages_of_a_gpu(report: ModuleType, tmp_path: Path) -> None:
    assert sum(stage.seconds for stage in report.STAGES) == report.SECONDS < 480
    machine = report.Machine(A_GPU, tmp_path, tmp_path / "wheels")
    commands = {stage.title: stage.command(machine, 7.0) for stage in report.STAGES if stage.title != "Build"}
    assert commands["Packages"][1:6] == ["-m", "pip", "install", "--no-index", "--find-links"]
    assert "easydict>=1.11" in commands["Packages"]
    for stage in report.STAGES:
        if stage.page is not None:
            *_, name = commands[stage.title][:5]
            assert name in gpu.PARTS
            assert commands[stage.title][5:] == ["--seconds", "7", "--output", str(tmp_path / stage.page)]
    marked = {path for path in (ROOT / "tests").rglob("*.py") if "pytest.mark.cuda" in path.read_text(encoding="utf-8")}
    own = {ROOT / place for place in report.OF_A_GPU}
    assert all(own & {path, *path.parents} for path in marked - {Path(__file__)})


def test_wheels_are_listed_without_torch(
    report: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert report.main(["--list-wheels"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert f"easydict=={version('easydict')}" in listed
    assert f"pydantic-core=={version('pydantic-core')}" in listed  # which pydantic needs
    assert not [line for line in listed if line.startswith(("torch=", "triton=", "nvidia"))]
    have = tmp_path / "have.txt"
    have.write_text(
        "\n".join(line for line in listed if not line.startswith("easydict")).replace("pydantic-", "Pydantic_")
    )
    assert report.main(["--list-wheels", "--have", str(have)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"easydict=={version('easydict')}"]


def test_rows_that_fail_or_are_late_are_named() -> None:
    def fails() -> list[str]:
        raise RuntimeError("no kernel image\nmore of it")

    def late() -> list[str]:
        raise KeyboardInterrupt

    rows = {"one": lambda: [1, 2], "two": fails, "three": late, "four": lambda: [3, 4]}
    written: list[str] = []
    text = gpu.fill(gpu.Table("Title", "Words.", ("a", "b"), rows), 60, written.append)
    assert text == written[-1]
    assert text.splitlines()[4:] == [
        *("| | a | b |", "|---|---:|---:|", "| one | 1 | 2 |", ""),
        "- two: FAILED, RuntimeError: no kernel image",
        "- three: cut, it took too long",
        "- four: cut, there was no time left",
    ]


def test_every_part_measures_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sizes = [
        "backbone.dim=48",
        "backbone.num_heads=3",
        "backbone.num_groups=8",
        "backbone.encoder_dim=48",
        "head.hidden=[]",
    ]
    monkeypatch.setattr(
        gpu, "TINY", gpu.TINY._replace(scene=300, copied=2**16, rounds=1, overrides=[*gpu.SMALL, *sizes])
    )
    monkeypatch.setattr(gpu, "LASTS", 1e-4)
    monkeypatch.setattr(gpu, "METHODS", ["scan_pb_t50_rs_linear", "scan_pb_t50_rs"])
    page = tmp_path / "part.md"
    for part, rows in {"ops": 11, "eager": 4, "bank": 3}.items():
        assert gpu.main([part, "--small", "--output", str(page)]) == 0, part
        text = page.read_text(encoding="utf-8")
        assert text in capsys.readouterr().out
        assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + rows
    assert gpu.main(["graphs", "--small"]) == 1
    assert "CUDA graphs need a CUDA device; leave it out here" in capsys.readouterr().out


def test_ops_that_differ_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda *arguments: torch.zeros(4, 16, dtype=torch.int64)  # noqa: E731
    monkeypatch.setattr(gpu.reference, "farthest_point_sample", wrong)
    monkeypatch.setattr(gpu, "LASTS", 1e-4)
    table = gpu.ops_table(gpu.TINY._replace(copied=2**16), CPU)
    first = dict([next(iter(table.rows.items()))])
    assert "| NO |" in gpu.fill(table._replace(rows=first), 60)


def test_graphs_are_refused_on_a_cpu() -> None:
    with pytest.raises(errors.ConfigError, match=r"demo\+graphed: CUDA graphs need a CUDA device"):
        gpu.make_training(gpu.Spec.parse("demo+graphed"), [], 2, CPU)
