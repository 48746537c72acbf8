"""Packages that are missing, or there but broken, are told apart and explained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pointadapterx.commands.main import main
from pointadapterx.config import read_config
from pointadapterx.datasets.point_files import read_cloud
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.optional import missing, need
from pointadapterx.visualize import open3d_view
from tests.datasets.odd_files import READ, content

LACKS = "libusb-1.0.so.0: cannot open shared object file"
BROKEN = rf"is installed but cannot be imported \({LACKS}\); install what it lacks"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a package in front of the real one that cannot be imported, as one whose system library is missing."""

    def put(name: str) -> None:
        if name in os.environ.get("POINTADAPTERX_ABSENT", "").split(","):
            pytest.skip(f"{name} is hidden by tests/absent, a broken one too")
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(f"raise ImportError('{LACKS}\\nand more')")
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)

    return put


def test_missing_and_broken_packages_are_told_apart(broken: Callable[[str], None]) -> None:
    broken("brittle")
    assert missing("json", "viz") is None
    assert missing("no_such_package.part", "viz") == "is not installed; pip install no_such_package (the extra viz)"
    with pytest.raises(ConfigError, match=rf"^x needs brittle, which {BROKEN}$"):
        need("brittle.part", "x needs brittle", "viz", ConfigError)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "views_mask_rcnn",
            "the backbone timm and the task detection need timm, torchvision and pycocotools, which are",
        ),
        ("views_upernet", "the backbone timm needs timm, which is"),
        ("hf_digits", "the backbone hf needs transformers, which is"),
        ("own", "data.root is required"),
    ],
)
def test_what_a_config_lacks_is_named_at_once_and_asked_of_the_config_that_was_named(
    config: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither package by package, nor of a file that it includes."""
    for package in ("timm", "torchvision", "pycocotools", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"^{config}: 1 problem in the config\n  \S+/{config}\.yaml: .*{message}"):
        read_config(config)


@pytest.mark.parametrize(("package", "suffix"), [("trimesh", "stl"), ("laspy", "las")])
def test_a_broken_reader_says_why(
    package: str, suffix: str, broken: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"cloud.{suffix}"
    path.write_bytes(content(READ[suffix][0]))
    broken(package)
    with pytest.raises(DataError, match=rf"cloud\.{suffix}: is .* by {package}.*, which {BROKEN}"):
        read_cloud(path, 10, 0)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"by {package}.*, which is not installed; pip install '?{package}"):
        read_cloud(path, 10, 0)


def test_points_need_no_package(tmp_path: Path) -> None:
    """Neither of pcd nor of ply."""
    script = "import sys\nfor name in ('open3d', 'trimesh', 'laspy'): sys.modules[name] = None\n"
    script += "from pathlib import Path\nfrom pointadapterx.datasets.point_files import read_cloud\n"
    for suffix, name in (("pcd", "pcd binary"), ("ply", "ply points")):
        (tmp_path / f"cloud.{suffix}").write_bytes(content(READ[name][0]))
        script += f"print(len(read_cloud(Path({str(tmp_path / f'cloud.{suffix}')!r}), 10, 0)))\n"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "4\n4\n"


def test_a_broken_open3d_says_why(broken: Callable[[str], None]) -> None:
    broken("open3d")
    open3d_view.problem.cache_clear()
    try:
        reason = open3d_view.problem()
    finally:
        open3d_view.problem.cache_clear()
    assert reason == open3d_view.BROKEN.format(reason=LACKS)


def test_a_cluster_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["compare", "--config", "study/quick", "--engine", "ray"]) == 2
    assert capsys.readouterr().err == (
        "error: --engine ray needs ray, which is not installed; pip install ray (the extra ray)\n"
    )


def test_serving_names_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("starlette", "uvicorn", "prometheus_client"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == (
        "error: serve needs starlette, uvicorn and prometheus_client, which are not installed; pip install starlette "
        "uvicorn prometheus-client (the extra serve)\n"
    )


@pytest.mark.parametrize(("command", "what"), [("report", "a report needs"), ("visualize", "pictures need")])
def test_a_broken_matplotlib_says_why(
    command: str,
    what: str,
    broken: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken("matplotlib")

    def draw(*_: object) -> None:
        import matplotlib  # noqa: F401

    monkeypatch.setattr("pointadapterx.commands.visualize.draw", draw)
    assert main([command, "run"]) == 2
    assert f"error: {what} matplotlib, which is installed but cannot be imported ({LACKS})" in capsys.readouterr().err
