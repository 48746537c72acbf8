"""ShapeNetPart in both of its layouts."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.datasets import ShapeNetPart, build_dataset
from pointadapterx.datasets.parts import numbers_of
from pointadapterx.datasets.shapenetpart import SHAPENETPART, _find_layout
from pointadapterx.errors import ConfigError, DataError
from tests.synthetic import write_shapenetpart, write_shapenetpart_h5

OWN = list(numbers_of(SHAPENETPART).values())


def read(root: Path, split: str = "train", **options: object) -> ShapeNetPart:
    data = build_dataset("shapenetpart", split, root=root, **options)
    assert isinstance(data, ShapeNetPart)
    return data


def test_parts_are_those_of_the_published_numbers() -> None:
    assert SHAPENETPART["Airplane"] == ["Airplane 0", "Airplane 1", "Airplane 2", "Airplane 3"]
    assert SHAPENETPART["Motorbike"] == [f"Motorbike {number}" for number in range(30, 36)]
    assert (len(SHAPENETPART), OWN[-1]) == (16, range(47, 50))


@pytest.mark.parametrize("write", [write_shapenetpart, write_shapenetpart_h5])
def test_samples(tmp_path: Path, write: object) -> None:
    folder = write(tmp_path)  # type: ignore[operator]
    for root in (tmp_path, folder):
        train, test = read(root), read(root, "test")
        assert (len(train), len(test)) == ((32, 16) if write is write_shapenetpart else (48, 16))
        assert train.validation is not None
        assert train.validation.sum() == 16
        assert test.validation is None
    assert train.classes == list(SHAPENETPART)
    assert torch.equal(train.targets.condition, train.labels)
    for data in (train, test):
        points, labels = data.draw(torch.arange(16))
        assert points.shape == (16, 2048, 3)
        assert points.norm(dim=2).amax() <= 1 + 1e-6
        for row, own in zip(labels, OWN, strict=True):
            assert set(row.tolist()) <= set(own)


def test_points_of_text_are_drawn_with_replacement_and_anew_in_every_epoch(tmp_path: Path) -> None:
    data = read(write_shapenetpart(tmp_path), num_points=100)
    points, labels = data.draw(torch.arange(4))
    again = data.draw(torch.arange(4))[0]
    assert torch.equal(points, again)
    assert len(points[0].unique(dim=0)) < 80  # of 100 or more: without replacement all 100 differ
    other = data.epoch(1, 0).draw(torch.arange(4))[0]
    assert not torch.equal(points, other)
    rows = np.loadtxt(tmp_path / data_path(data, 0))
    centred = rows[:, :3] - rows[:, :3].mean(0)
    centred /= np.linalg.norm(centred, axis=1).max()
    near = np.abs(points[0].numpy()[:, None] - centred).sum(2)
    assert near.min(1).max() < 1e-6
    np.testing.assert_array_equal(rows[near.argmin(1), 6], labels[0])


def data_path(data: ShapeNetPart, number: int) -> str:
    return f"shapenetcore_partanno_segmentation_benchmark_v0_normal/{data.scene_names[number]}.txt"


def test_points_of_h5_are_drawn_without(tmp_path: Path) -> None:
    data = read(write_shapenetpart_h5(tmp_path), num_points=256)
    assert len(data.draw(torch.tensor([0]))[0][0].unique(dim=0)) == 256


def test_both_layouts(tmp_path: Path) -> None:
    text, h5 = write_shapenetpart(tmp_path), write_shapenetpart_h5(tmp_path)
    assert _find_layout(tmp_path, None, "train") == ("text", text)
    assert _find_layout(tmp_path, "h5", "train") == ("h5", h5)


def broken_text(folder: Path, what: str) -> None:
    file, listing = folder / "02000001" / "train0.txt", folder / "train_test_split" / "shuffled_train_file_list.json"
    rows = file.read_text().splitlines()
    match what:
        case "label":
            file.write_text("\n".join([*rows[:-1], f"{rows[-1].rpartition(' ')[0]} 4.000000"]))
        case "column":
            file.write_text("\n".join(row.rpartition(" ")[0] for row in rows))
        case "word":
            file.write_text("\n".join([*rows, "1 2 3 4 5 6 chair"]))
        case "nan":
            file.write_text("\n".join([*rows, "nan 2 3 4 5 6 1"]))
        case "missing":
            file.unlink()
        case "empty":
            file.write_text("")
        case "entry":
            listing.write_text(json.dumps(["shape_data/123/abc"]))
        case "json":
            listing.write_text("[")
        case "list":
            listing.write_text("{}")
        case "category":
            path = folder / "synsetoffset2category.txt"
            path.write_text(path.read_text().replace("Table", "Tables"))
        case "no list":
            listing.unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("label", r"02000001/train0\.txt: row \d+ has label 4, expected 0 to 3 of Airplane \(1 of \d+ rows\)"),
        ("column", "rows have 6 columns, expected x y z nx ny nz label"),
        ("word", "rows must be x y z nx ny nz label, but could not convert string 'chair'"),
        ("nan", "1 of .* points have NaN or infinite coordinates"),
        ("missing", "1 of the 32 listed files of train are missing, the first is .*train0.txt"),
        ("empty", r"the file is empty \(0 bytes\)"),
        ("entry", "entry 1 is 'shape_data/123/abc', expected shape_data/OFFSET/SHAPE"),
        ("json", "is no JSON"),
        ("list", "is no list of shapes"),
        ("category", "has the line 'Tables 02000016', expected NAME OFFSET with one of Airplane"),
        ("no list", r"shuffled_train_file_list\.json \(missing\)"),
    ],
)
def test_damaged_text(tmp_path: Path, what: str, words: str) -> None:
    broken_text(write_shapenetpart(tmp_path), what)
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_damaged_h5(tmp_path: Path) -> None:
    folder = write_shapenetpart_h5(tmp_path)
    with h5py.File(folder / "ply_data_val0.h5", "r+") as file:
        file["pid"][1, 7] = 0
    words = r"ply_data_val0\.h5: point 7 of object 1 has label 0, expected 4 to 5 of the category Bag"
    with pytest.raises(DataError, match=words):
        read(tmp_path)
    (folder / "ply_data_train1.h5").unlink()
    with pytest.raises(DataError, match=r"train_hdf5_file_list\.txt: lists ply_data_train1\.h5, which is missing"):
        read(tmp_path)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is required for shapenetpart"):
        build_dataset("shapenetpart", "train")
    with pytest.raises(DataError, match=r"synsetoffset2category\.txt \(missing\)"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="variant 'texts' is unknown"):
        read(tmp_path, variant="texts")
    write_shapenetpart(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.block=1\.0: samples of shapenetpart are whole shapes"):
        read(tmp_path, block=1.0)
