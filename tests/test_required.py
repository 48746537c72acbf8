"""A test that lacks what this machine must have fails, and says what."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.required import KNOWN, VARIABLE

TESTS = {
    "nvcc": "@pytest.mark.nvcc\n@pytest.mark.skipif(True, reason='not found')\ndef test():\n    pass\n",
    "browser": "@pytest.mark.browser\ndef test():\n    pytest.skip('not found')\n",
    "packages": "def test():\n    pytest.importorskip('no_such_package')\n",
    "packages of a file": "pytest.importorskip('no_such_package')\n\ndef test():\n    pass\n",
}


def outcomes(folder: Path, requires: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What pytest prints about all of them where that is required."""
    for number, text in enumerate(TESTS.values()):
        (folder / f"test_{len(requires)}_{number}.py").write_text(f"import pytest\n\n{text}")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    nvcc\n    browser\n")
    monkeypatch.setenv(VARIABLE, requires)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    options = ["-q", "-rs", "-p", "tests.required", "-p", "no:cacheprovider", "--import-mode=importlib"]
    options += ["-p", "no:faulthandler"]  # which would be off for the tests that follow in this process
    pytest.main([*options, "--continue-on-collection-errors", *map(str, folder.glob(f"test_{len(requires)}_*"))])
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_only_what_is_required_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "4 skipped" in outcomes(tmp_path, "", monkeypatch, capsys)
    text = outcomes(tmp_path, "nvcc, packages", monkeypatch, capsys)
    assert f"requires {KNOWN['nvcc']}, but this was skipped. Skipped: not found" in text
    assert text.count(f"requires {KNOWN['packages']}, but this was skipped") == 2
    assert re.search(r"1 failed, 1 skipped,.* 2 errors", text)
    assert KNOWN["browser"] not in text


def test_a_misspelt_requirement_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = outcomes(tmp_path, "nvc", monkeypatch, capsys)
    assert f"{VARIABLE}: nvc; it takes browser, vulkan, nvcc" in text


def ci(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``.ci/run`` in a folder of its own, on a machine with a C++ compiler whose ``make`` only prints its target."""
    programs = folder / "bin"
    if not programs.exists():
        programs.mkdir()
        for name in ("bash", "dirname", "env", "grep"):
            (programs / name).symlink_to(str(shutil.which(name)))
        for name, text in {"make": "echo make $1", "id": "echo 1000", "c++": "", "ldconfig": ""}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    variables = {"PATH": str(programs), **environment}
    return subprocess.run([str(folder / ".ci" / "run")], env=variables, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix" or shutil.which("bash") is None, reason="a script for bash")
def test_ci_fails_before_its_work_where_something_is_missing(tmp_path: Path) -> None:
    done = ci(tmp_path)
    assert done.returncode == 1
    assert not done.stdout
    names = re.findall(r"^missing here: (\w+):", done.stderr, re.MULTILINE)
    lacking = ["reference", "nvcc", "browser", "vulkan"]
    assert names == [name for name in lacking if name != "nvcc" or not Path("/usr/local/cuda/bin/nvcc").exists()]
    done = ci(tmp_path, POINTADAPTERX_REQUIRE="packages,compiler")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["make lint", "make docs", "make test-all"]
    (tmp_path / "bin" / "nvcc").symlink_to(tmp_path / "bin" / "c++")
    reference = {"POINTADAPTERX_REFERENCE": str(tmp_path), "POINTADAPTERX_BROWSER": "chrome"}
    assert re.findall(r"missing here: (\w+)", ci(tmp_path, **reference).stderr) == ["vulkan"]
