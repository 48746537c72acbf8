"""The report: what it says, and that it lives in a browser without a network."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pointadapterx import jobs as run
from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import read_config
from pointadapterx.engine import devices
from pointadapterx.errors import CheckpointError
from pointadapterx.report import page
from pointadapterx.report.document import _record, write_report
from pointadapterx.tasks.classification import Classification
from tests.browser import STILL, WEBGL, page_of
from tests.conftest import ROOT
from tests.visualize.conftest import save_random

SMALL = ["backbone.weights=null", "backbone.depth=2", "backbone.num_groups=16", "data.num_points=256"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on the embedded clouds, for reports, which need matplotlib."""
    pytest.importorskip("matplotlib", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("report") / "run"
    overrides = ["train.epochs=2", "train.warmup_epochs=0", "data.train_size=100", *SMALL]
    run.train(read_config(ROOT / "cfgs" / "demo.yaml", overrides), "demo", folder, devices.make_accelerator("fp32"))
    return folder


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    """Its report."""
    return write_report([finished])


@pytest.mark.parametrize("name", ["metrics.json", "history.json"])
@pytest.mark.parametrize(
    "content", ["null", "{}", "3", '{"test": null}', '[{"epoch": 1, "train_loss": null}]', "[" * 99_999]
)
def test_files_of_another_kind_are_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name}: is not .*; restore it or move it away"):
        _record(SimpleNamespace(path=tmp_path / "adapter.safetensors", task=Classification))


@pytest.mark.slow
def test_it_says_what_the_run_found(finished: Path, report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    metrics = json.loads((finished / "metrics.json").read_text())
    assert report == finished / "report.html"
    assert report.stat().st_size < 5e6
    row = re.search(r"overall accuracy \(OA\) \[95 %\]</td><td>([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
    assert row is not None
    accuracy, low, high = map(float, row.groups())
    assert accuracy == pytest.approx(metrics["test"]["overall_accuracy"], abs=0.005)
    assert low < accuracy < high
    for figure in (
        f"{metrics['calibration']['calibration_error_before']:.2f} %",
        f"{metrics['calibration']['calibration_error']:.2f} % (T = ",
        f"{metrics['parameters']['trainable']:,} (",
        f"{metrics['peak_memory_mib']:,.0f} MiB",
        metrics["protocol"],
        metrics["data"]["checksum"],
        metrics["hardware"],
        "pointadapterx train --config config.yaml",
    ):
        assert figure in text
    shown = re.search(r"<pre>(backbone:.*?)</pre>", text, re.DOTALL)
    assert shown is not None
    again = finished.parent / "again.yaml"
    again.write_text(html.unescape(shown[1]))
    assert read_config(again) == read_config(finished / "config.yaml")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)  # nothing to fetch


@pytest.mark.slow
def test_several_runs_side_by_side(finished: Path, tmp_path: Path) -> None:
    other = save_random(tmp_path / "linear.safetensors", "demo_linear.yaml", *SMALL)
    output = tmp_path / "both.html"
    assert main(["report", str(finished), str(other), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "<title>dapt_x and linear on ldraw20</title>" in text
    assert re.search(r"difference to dapt_x \[95 %\]</td><td></td><td>[+-][\d.]+ \[[+-]", text)
    assert output.stat().st_size < 5e6


def test_what_cannot_be_reported(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    digits = save_random(tmp_path / "digits.safetensors", "vtab/digits.yaml")
    assert main(["report", str(finished), str(digits)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "knows other classes" in line
    (finished / "history.json").rename(tmp_path / "history.json")
    (finished / "history.json").write_text("{")
    assert main(["report", str(finished), "--output", str(tmp_path / "r.html")]) == 2
    assert "history.json: is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    (finished / "history.json").write_text('[{"epoch": 1}]')
    assert main(["report", str(finished), "--output", str(tmp_path / "r.html")]) == 2
    assert "history.json: is not of a finished run" in capsys.readouterr().err
    (tmp_path / "history.json").replace(finished / "history.json")
    assert main(["report", str(tmp_path / "a=b")]) == 2
    assert "a=b: no such run or file" in capsys.readouterr().err


@pytest.fixture(scope="module", params=["webgl", "still"])
def opened(request: pytest.FixtureRequest, report: Path) -> Iterator[tuple[str, Any, list[str], list[str]]]:
    """The report in a headless browser with and without WebGL; its page, complaints and requests."""
    flags = {"webgl": WEBGL, "still": STILL}[request.param]
    with page_of(report.as_uri(), flags) as (page, complaints, requests):
        yield request.param, page, complaints, requests


@pytest.mark.slow
@pytest.mark.browser
def test_it_lives_in_a_browser(opened: tuple[str, Any, list[str], list[str]], report: Path) -> None:
    kind, page, complaints, requests = opened
    assert page.evaluate("document.documentElement.dataset.viewer") == kind
    assert page.locator("h2").count() >= 10
    broken = "Array.from(document.images).filter(i => !i.complete || i.naturalWidth === 0).length"
    assert page.evaluate(broken) == 0
    clouds = page.locator("figure.cloud")
    assert clouds.count() == 16
    if kind == "still":
        assert page.locator("canvas").count() == 0
        assert clouds.locator("img").count() == 16
    else:
        canvas = clouds.locator("canvas").first
        canvas.scroll_into_view_if_needed()
        before, box = canvas.screenshot(), canvas.bounding_box()
        page.mouse.move(box["x"] + 80, box["y"] + 80)
        page.mouse.down()
        page.mouse.move(box["x"] + 130, box["y"] + 90, steps=5)
        page.mouse.up()
        turned = canvas.screenshot()
        assert turned != before
        canvas.press("ArrowLeft")
        assert canvas.screenshot() != turned
        plain = canvas.screenshot()
        choices = page.locator("select.colours").first
        choices.select_option("groups")
        assert canvas.screenshot() != plain
        section = choices.locator("xpath=ancestor::section")
        shown = [legend.get_attribute("data-mode") for legend in section.locator(".legend:visible").all()]
        assert shown == ["groups"]
        modes = choices.locator("option").all_inner_texts()
        depth = read_config(report.parent / "config.yaml", []).backbone.depth
        assert [name for name in modes if name.startswith("expert")] == [
            f"expert of sub-token 1, block {number}" for number in range(1, depth + 1)
        ]
    assert complaints == []
    assert requests == [report.as_uri()]


@pytest.mark.slow
def test_an_adapter_without_its_run_is_reported_too(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "adapter.safetensors"
    shutil.copy(finished / "adapter.safetensors", alone)
    text = write_report([alone], ["eval.batch_size=7"]).read_text(encoding="utf-8")
    assert "Course of training" not in text
    assert "seconds an epoch" not in text
    assert f"{len(read_adapter(alone).classes)}</td>" in text
    assert "batch_size: 7" not in text  # how it was trained, not how it was looked at


def test_a_large_picture_takes_little_room() -> None:
    pytest.importorskip("matplotlib", exc_type=ImportError)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(26, 8))
    rng = np.random.default_rng(0)
    for place in range(36):
        axes = figure.add_subplot(3, 12, place + 1)
        axes.scatter(*rng.normal(size=(2, 2048)), s=2.5, c=rng.integers(4, size=2048), cmap="tab10")
    url = page.data_url(figure)
    assert len(url) < 1e6
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert picture.width <= page.WIDEST
