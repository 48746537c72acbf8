"""``predict --score``: labels of points beside those in the files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.commands.main import main
from pointadapterx.datasets.point_files import AS_FILES_SAY
from pointadapterx.errors import DataError
from pointadapterx.labelled_files import write_labelled
from pointadapterx.tasks import build_task
from pointadapterx.tasks.point_labels import PointLabels
from pointadapterx.tasks.point_scores import FileScores
from pointadapterx.tasks.point_segmentation import PointFacts, PointSegmentation
from tests.rooms import CLASSES, room, rooms_config

NUMBERS = [10, 20, 30, 40]
"""Of the classes in the training files."""


def scores() -> FileScores:
    task = build_task(rooms_config(), PointFacts(CLASSES, NUMBERS))
    assert isinstance(task, PointSegmentation)
    return FileScores(task, None, AS_FILES_SAY)


def table(path: Path, labels: list[object]) -> Path:
    """A point for each label; a row without a number is one without a point."""
    rows = [
        f"{'nan' if label is None else place},0,1,{-1 if label is None else label}"
        for place, label in enumerate(labels)
    ]
    path.write_text("\n".join(["x,y,z,label", *rows]))
    return path


def answer(path: Path, labels: list[int]) -> PointLabels:
    """What an adapter says of such a table; -1 for a row without a point."""
    found = np.array(labels)
    points = np.stack([np.arange(len(found)), np.zeros(len(found)), np.ones(len(found))], axis=1)
    points[found < 0] = np.nan
    return PointLabels(str(path), "a", CLASSES, found, np.ones(len(found)), [], points, NUMBERS)


def test_by_hand(tmp_path: Path) -> None:
    """Rows without a point and points without a class count nowhere; in all, points count and not files."""
    compared = scores()
    one = table(tmp_path / "one.csv", [10, 10, 20, None, -1])
    other = table(tmp_path / "other.csv", [30])
    found = compared.scored(answer(one, [0, 1, 1, -1, 3])).measured
    assert found is not None
    assert (found.points, found.miou, found.accuracy) == (3, pytest.approx(50), pytest.approx(200 / 3))
    assert found.classes == pytest.approx({"floor": 50, "wall": 50})
    compared.scored(answer(other, [2]))
    said = "mIoU 66.7 %, 75.0 % of 4 labelled points are right"
    assert compared.lines() == [f"on labels in 2 files: {said}", "IoU % by class: floor 50.0, wall 50.0, ceiling 100.0"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([10, 7], r"has the label 7, which is no class of the adapter \(floor, wall, ceiling, lamp\)"),
        ([-1, -1], "none of its points has a label to compare with"),
        ([10, 20, 20], "its labels are not those of the points that were predicted"),
        ([10, "roof"], "the label 'roof' is none of the names in the adapter"),
    ],
)
def test_what_cannot_be_compared_is_said(labels: list[object], message: str, tmp_path: Path) -> None:
    compared = scores()
    with pytest.raises(DataError, match=message):
        compared.scored(answer(table(tmp_path / "a.csv", labels), [0, 1]))
    assert compared.lines() == []


def test_labels_may_be_the_names_of_classes(tmp_path: Path) -> None:
    """Also where some points have numbers."""
    found = scores().scored(answer(table(tmp_path / "a.csv", ["floor", 20, "wall", 40]), [0, 1, 1, 3])).measured
    assert found is not None
    assert (found.points, found.accuracy) == (4, 100)


def test_a_cloud_of_several_in_a_file_is_said_to_have_no_score(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"many\.h5#0: clouds of a file of several cannot be scored; write one cloud to"
    ):
        scores().scored(answer(tmp_path / "many.h5#0", [0, 1]))


def test_names_count_more_than_numbers(tmp_path: Path) -> None:
    """A file may number its classes otherwise, if it names them."""
    wanted = answer(tmp_path / "a.ply", [0, 1, 3])
    write_labelled(tmp_path / "a.ply", ".ply", wanted.points, wanted.labels, wanted.confidence, CLASSES)
    found = scores().scored(wanted).measured
    assert found is not None
    assert found.accuracy == 100


def test_the_command_scores_files_and_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = rooms_config(data={"block": "whole"})
    save_adapter(
        build_model(config), tmp_path / "a.safetensors", config=config, facts=PointFacts(CLASSES, NUMBERS), metrics={}
    )
    (tmp_path / "rooms").mkdir()
    for number, values in enumerate((NUMBERS, [1, 2, 3, 4])):
        points, labels = room(200, number)
        path = tmp_path / "rooms" / f"{number}.csv"
        rows = (f"{x},{y},{z},{values[label]}" for (x, y, z), label in zip(points / 1000, labels, strict=True))
        path.write_text("\n".join(["x,y,z,kind", *rows]))
    given = ["predict", str(tmp_path / "a.safetensors"), str(tmp_path / "rooms"), "--device", "cpu"]
    assert main([*given, "--score", "--label-field", "kind", "--output", str(tmp_path / "found.csv")]) == 3
    said = capsys.readouterr()
    assert "on labels in 1 file: mIoU " in said.out
    assert "1.csv: has the label 1, which is no class of the adapter" in said.err
    assert "found.csv, 2 files predicted" in said.out
    assert "1 of 2 files could not be scored" in said.err
    assert "predicted" not in said.err
    with (tmp_path / "found.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["labelled_points"] == "200"
    assert f"{float(first['miou_on_labels']):.1f} %" in said.out
    assert second["accuracy_on_labels"] == ""
    assert second["warnings"].startswith("not scored: ")
    assert main([*given, "--score", "--output", str(tmp_path / "found.jsonl")]) == 3  # no such field by a usual name
    first, second = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    assert first["on_labels"] is None
    assert set(first["classes"]) == {str(label) for label in first["labels"]}
    for command, message in (
        ([*given, "--label-field", "kind"], "--label-field belongs to --score"),
        (["predict", "ldraw20", *given[2:], "--score"], "the task classification does not give"),
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert message in capsys.readouterr().err
