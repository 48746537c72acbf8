"""Small tasks that tools/draw_pictures.py makes: pictures drawn by class, and objects cut out of photographs."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx.datasets import build_dataset
from pointadapterx.errors import DataError
from tests.conftest import load_tool

VOC = """<annotation><filename>{name}.png</filename><size><width>40</width><height>30</height></size>
{objects}</annotation>"""
OBJECT = """<object><name>{kind}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", *map(str, arguments)])
    return int(load_tool("draw_pictures").main())


def folders(root: Path, *parts: str, pictures: int = 6) -> Path:
    """Classes cat and dog, in each part; every picture has its own grey."""
    for number, part in enumerate(f"{part}/{name}" for part in parts for name in ("cat", "dog")):
        (root / part).mkdir(parents=True)
        for i in range(pictures):
            Image.new("L", (4, 4), 20 * number + i).save(root / part / f"{i}.png")
    return root


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Photographs of 40 x 30 pixels, three to train on and one to test; a pixel is (x, y, number of the photograph)."""
    root = tmp_path / "cells"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    red = OBJECT.format(1, 1, 20, 16, kind="red", difficult=0)
    white = OBJECT.format(31, 6, 40, 25, kind="white", difficult=0)
    unwanted = OBJECT.format(1, 1, 30, 30, kind="red", difficult=1) + OBJECT.format(
        5, 5, 8, 8, kind="white", difficult=0
    )
    rows, columns = np.mgrid[:30, :40]
    for number, name in enumerate("abcd"):
        text = VOC.format(name=name, objects=red + white + unwanted + white)
        (root / "Annotations" / f"{name}.xml").write_text(text)
        pixels = np.stack([columns, rows, np.full_like(rows, number)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("d\n")
    return root


def test_classes_are_drawn_by_name_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = folders(tmp_path / "all", "."), tmp_path / "task"
    assert run(monkeypatch, "classes", source, output, "--train", 4, "--seed", 3) == 0
    names = [f"{i}.png" for i in range(6)]
    random.Random(3).shuffle(names)
    train, test = (build_dataset("imagefolder", split, root=output) for split in ("train", "test"))
    assert train.names == sorted(f"{label}/{name}" for label in ("cat", "dog") for name in names[:4])
    assert test.names == sorted(f"{label}/{name}" for label in ("cat", "dog") for name in names[4:])
    assert (output / "train" / "dog" / names[0]).read_bytes() == (source / "dog" / names[0]).read_bytes()


def test_parts_that_are_there_are_drawn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = folders(tmp_path / "all", "train", "test"), tmp_path / "task"
    assert run(monkeypatch, "classes", source, output, "--train", 2, "--test", 5) == 0
    assert [len(build_dataset("imagefolder", split, root=output)) for split in ("train", "test")] == [4, 10]


def test_objects_are_cut_out_of_photographs(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "task"
    assert run(monkeypatch, "objects", "voc", cells, output, "--train", 4) == 0
    assert "train: 7 pictures of 2 classes" in capsys.readouterr().out  # 3 of red, 4 of the 6 of white
    train, test = (build_dataset("imagefolder", split, root=output / "pictures.csv") for split in ("train", "test"))
    assert (train.classes, len(train), len(test)) == (["red", "white"], 7, 3)
    assert test.names == ["test/red/d_0.png", "test/white/d_1.png", "test/white/d_4.png"]
    first = train.subset([0]).fetch(torch.tensor([0]), 20, 3)[0]
    assert first[:, [0, 19], [0, 19]].tolist() == [[0, 19], [0, 19], [0, 0]]  # 20 x 16, at the upper edge
    white = test.fetch(torch.tensor([1]), 20, 3)[0]
    assert white[:, [0, 19], [0, 19]].tolist() == [[20, 39], [5, 24], [3, 3]]  # 10 x 20, at the right edge
    assert train.names is not None
    assert train.groups is not None
    photographs = [name.rsplit("/", 1)[1][0] for name in train.names]
    assert len(set(zip(photographs, train.groups.tolist(), strict=True))) == len(set(train.groups.tolist())) == 3


def coco(root: Path, *names: str) -> Path:
    """A picture of each name with an object of the whole picture; its grey is its number."""
    for split in ("train", "test"):
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        for i, name in enumerate(names):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (i, i, i)).save(root / split / name, format="png")
            content["images"].append({"id": i, "file_name": name, "width": 20, "height": 20})
            content["annotations"].append(
                {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 0}
            )
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def test_pictures_of_one_name_in_two_folders_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = coco(tmp_path / "all", "a/1.png", "b/1.png"), tmp_path / "task"
    assert run(monkeypatch, "objects", "coco", source, output, "--train", 2) == 0
    files = sorted((output / "train" / "cat").iterdir())
    assert [file.name for file in files] == ["a_1_0.png", "b_1_0.png"]
    assert [Image.open(file).getpixel((0, 0)) for file in files] == [(0, 0, 0), (1, 1, 1)]


def test_pictures_that_differ_by_their_suffix_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco(tmp_path / "all", "1.png", "1.jpg")
    assert run(monkeypatch, "objects", "coco", source, tmp_path / "task", "--train", 2) == 2
    assert "another picture has its name but for the suffix; rename one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_an_object_larger_than_its_picture_loses_its_ends() -> None:
    assert load_tool("draw_pictures").square([2.0, 10.0, 38.0, 20.0], 40, 30) == (5, 0, 30)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("classes", "all", "all", "--train", 1), "all: exists; choose another name"),
        (("classes", "nowhere", "task", "--train", 1), "nowhere: holds no folders of classes"),
        (("classes", "all", "task", "--train", 6), "cat has 6 pictures, too few for 6 and a test"),
    ],
)
def test_nothing_half_written_is_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "all", ".")
    assert run(monkeypatch, *arguments) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


@pytest.mark.parametrize("arguments", [("--train", 0), ("--train=-3",), ("--train", 2, "--test", 0)])
def test_a_part_has_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]) -> None:
    folders(tmp_path / "all", ".")
    with pytest.raises(SystemExit):
        run(monkeypatch, "classes", tmp_path / "all", tmp_path / "task", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_a_table_of_pictures_names_only_pictures(tmp_path: Path) -> None:
    folders(tmp_path, "train", "test", pictures=1)
    (tmp_path / "notes.txt").write_text("no picture")
    lines = ["file,label,split", "train/cat/0.png,cat,train", "train/dog/0.png,dog,train", "notes.txt,dog,test"]
    (tmp_path / "pictures.csv").write_text("\n".join(lines))
    assert build_dataset("imagefolder", "train", root=tmp_path / "pictures.csv").groups is None
    with pytest.raises(DataError, match=r"pictures\.csv: notes\.txt is no image"):
        build_dataset("imagefolder", "test", root=tmp_path / "pictures.csv")
