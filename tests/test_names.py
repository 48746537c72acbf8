"""Names of files and classes that mean something to a terminal, a spreadsheet, HTML or Markdown, or are not UTF-8."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from pointadapterx import text
from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config, load_config
from pointadapterx.engine.console import PlainConsole, PlainFormatter
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.jobs import testing
from pointadapterx.tasks.classification import metrics_table
from tests.conftest import small_config
from tests.synthetic import shape

BYTES = sys.platform.startswith("linux")  # elsewhere a file's name is text
RED = "\x1b[31mred\x1b[0m"
CLASSES = ["[b]", "=1+1", "+cmd", RED, "a\nb", "*x* _y_ `z` | <b>", *(["caf\udce9"] if BYTES else []), ":smile: $x$"]
FILE = f"-[b] {RED}\udcff.npy" if BYTES else "-[b].npy"
OVERALL = {"overall_accuracy": 50.0, "mean_class_accuracy": 50.0}
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


def write_clouds(root: Path) -> Path:
    """Three training and two test clouds of each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                np.save(folder / f"{number}{FILE}", shape(label, 160, rng))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clouds(tmp_path_factory.mktemp("names"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on these classes, trained by the command."""
    folder = tmp_path_factory.mktemp("run")
    sections: dict[str, Any] = small_config(
        data={"name": "folder", "root": str(data), "stored_points": 128},
        head={"num_classes": len(CLASSES)},
        train={"epochs": 1},
    )
    (folder / "config.yaml").write_text(dump_config(sections), encoding="utf-8")
    assert main(["train", "--config", str(folder / "config.yaml"), "--output", str(folder / "run")]) == 0
    return folder / "run"


def require_plain(*texts: str) -> None:
    """Nothing acts on a terminal, and all of it is UTF-8."""
    for written in texts:
        found = HIDDEN.search(written)
        assert found is None, written[max(0, found.start() - 40) : found.end() + 40] if found else ""
        written.encode()


def test_a_run_goes_through_with_any_class_names(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_adapter(finished).classes == sorted(CLASSES)
    assert main(["--resume", str(finished)]) == 0
    (finished / "metrics.json").unlink()  # as if it had been stopped between the training and its end
    assert main(["--resume", str(finished)]) == 0
    assert main(["--test", str(finished), "--output", str(tmp_path / "test"), "--vote", "2"]) == 0
    assert main(["push", str(finished), "owner/names", "--folder", str(tmp_path / "card")]) == 0
    captured = capsys.readouterr()
    assert r"│ \x1b[31mred\x1b[0m " in captured.out
    assert "│ [b] " in captured.out
    assert "│ :smile: $x$ " in captured.out
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert r"\*x\* \_y\_ \`z\` &#124; \<b\>" in card
    assert r"a\\nb" in card
    require_plain(captured.out, captured.err, (finished / "log.txt").read_text(encoding="utf-8"), card)
    for path in (finished / "predictions.csv", tmp_path / "test" / "vote_predictions.csv"):
        written = path.read_text(encoding="utf-8")
        require_plain(written.replace("\r\n", "\n"))
        rows = list(csv.DictReader(io.StringIO(written, newline="")))
        assert len(rows) == 2 * len(CLASSES)
        assert {row["label"] for row in rows} == {text.cell(name) for name in CLASSES}
        assert {"'=1+1", "'+cmd"} < {row["label"] for row in rows}
        assert all(0 <= float(row["probability"]) <= 1 for row in rows)
    assert json.loads((finished / "metrics.json").read_text())["test"]["per_class"].keys() == set(CLASSES)
    again = load_config(finished / "config.yaml", [])
    assert again["data"]["root"] == str(data)


def test_files_are_predicted_whatever_they_are_called(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = np.load(next((data / "test").rglob("*.npy")))
    np.save(tmp_path / FILE, cloud)
    (tmp_path / f"=broken {RED}.npy").write_bytes(b"no array")
    monkeypatch.chdir(tmp_path)
    files = [FILE, f"=broken {RED}.npy"]
    arguments = ["predict", str(finished), "--workers", "1", "--top", str(len(CLASSES))]
    for more in ([], ["--output", "found.csv"], ["--output", "found.jsonl"]):
        assert main([*arguments, *more, "--", *files]) == 3
    captured = capsys.readouterr()
    require_plain(captured.out, captured.err)
    assert text.printable(FILE) in captured.out
    written = Path("found.csv").read_text(encoding="utf-8")
    require_plain(written.replace("\r", ""))
    first, second = csv.DictReader(io.StringIO(written, newline=""))
    assert first["file"] == f"'{text.printable(FILE)}"
    assert float(first["probability_1"]) > 0
    assert second["file"].startswith(r"'=broken \x1b[31m")
    lines = Path("found.jsonl").read_text(encoding="utf-8").splitlines()
    require_plain(*lines)
    one, other = map(json.loads, lines)
    assert one["file"] == FILE  # exact, and so are the classes
    assert set(one["classes"]) == set(CLASSES)
    assert other["file"] == files[1]


def test_a_folder_is_examined_whatever_it_holds(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(data), "--stored-points", "128", "--workers", "1"]) in (0, 1)
    captured = capsys.readouterr()
    require_plain(captured.out, captured.err)
    assert r"\x1b[31mred" in captured.out
    assert main(["doctor", str(data / f"none {RED}")]) == 2
    require_plain(capsys.readouterr().err)


@pytest.mark.skipif(not BYTES, reason="elsewhere every path is text")
def test_where_tensors_cannot_lie_is_said_before_anything_is_trained(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "caf\udce9"
    config = str(finished.parent / "config.yaml")
    shutil.copytree(finished, folder / "copy")
    for arguments in (
        ["train", "--config", config, "--output", str(folder / "run")],
        ["--resume", str(folder / "copy")],
        ["predict", str(folder / "copy"), "x.ply"],
        ["export", str(finished), str(folder / "x.onnx")],
    ):
        assert main(arguments) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"error: {tmp_path}/caf\\xe9/")
        assert error.endswith("the name is not UTF-8, and no file of tensors can be opened there; rename it, or "
                              "choose another")  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["copy"]


@pytest.mark.slow
def test_pictures_and_report_are_made_whatever_the_names(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    options = ["--renderer", "matplotlib", "--format", "svg", "--samples", "2", "--output", str(tmp_path / RED)]
    assert main(["visualize", str(finished), *options, "--picture", "tsne", "confusion", "mistakes", "saliency"]) == 0
    assert main(["report", str(finished), "--output", str(tmp_path / f"{RED}.html")]) == 0
    captured = capsys.readouterr()
    require_plain(captured.out, captured.err)
    page = (tmp_path / f"{RED}.html").read_text(encoding="utf-8")
    require_plain(page)
    assert "*x* _y_ `z` | &lt;b&gt;" in page
    assert "<b>" not in page


def test_markup_of_the_console_is_text() -> None:
    console = PlainConsole(file=io.StringIO(), width=80, color_system=None)
    table = Table("[/b]", title="[/i] :smile:")
    table.add_row("[/b]", f"{RED}", ":heart:")
    names = {"per_class": {"[/b]": {"accuracy": 50.0, "count": 2}}, "count": 2}
    console.print(table, "[/red]", ":x:", metrics_table(names | OVERALL, "[/i]"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for part in ("[/b]", "[/i] :smile:", ":heart:", "[/red]", ":x:", r"\x1b[31mred"):
        assert part in shown
    require_plain(shown)
    assert isinstance(testing.console, PlainConsole)


def test_a_name_cannot_write_a_line_of_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "read %s", (f"a\n12:00 INFO all is well{RED}",), None)
    assert PlainFormatter().format(record) == r"read a\n12:00 INFO all is well\x1b[31mred\x1b[0m"


def test_errors_are_plain() -> None:
    assert str(DataError(f"{RED}\n\udcff.ply: no file")) == r"\x1b[31mred\x1b[0m\n\xff.ply: no file"
    assert str(ConfigError("2 problems\n  a\x1b\n  b")) == "2 problems\n  a\\x1b\n  b"


def test_what_is_shown_of_a_name() -> None:
    assert text.printable("Stühle ☃ \u200d") == "Stühle ☃ \u200d"  # joins letters
    assert text.printable("a\u202eb\ud800\x9b\ufeff") == r"a\u202eb\ud800\x9b\ufeff"
    assert text.printable(os.fsdecode(b"\xe9")) == ("\\xe9" if BYTES else "é")
    assert text.markdown("dapt_x _a_ [l](u) #1") == r"dapt_x \_a\_ \[l\](u) \#1"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-x", "'-x"),
        ("＝1", "'＝1"),
        ("'=1", "''=1"),
        ("''=1", "'''=1"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        ("-1+1", "'-1+1"),
        ("'quoted'", "'quoted'"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_cells_are_no_formulas_and_come_back(value: str, written: str) -> None:
    assert text.guarded(value) == written
    assert text.unguarded(written) == value
