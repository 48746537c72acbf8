"""Labelled HDF5 files with classes of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.build import build_splits
from pointadapterx.config import Config
from pointadapterx.datasets import LabelledH5, build_dataset
from pointadapterx.errors import ConfigError, DataError
from tests.conftest import small_config, small_pretraining
from tests.synthetic import clouds

CLASSES = ["bowl", "cup", "jug"]


def write(path: Path, split: str = "train", per_class: int = 10, num_points: int = 64, **entries: Any) -> None:
    """A file of three classes; an entry of None is left out."""
    data, label = clouds(split, range(3), per_class, num_points)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        classes = entries.pop("classes", CLASSES)
        for key, value in {"data": data, "label": label, **entries}.items():
            if value is not None:
                file[key] = value
        if classes is not None:
            file.attrs["classes"] = classes


def read(root: Path, split: str = "train", **options: Any) -> LabelledH5:
    data = build_dataset("h5", split, root=root, **options)
    assert isinstance(data, LabelledH5)
    return data


def test_a_training_and_a_test_file(tmp_path: Path) -> None:
    names, groups = [f"{i}.ply" for i in range(30)], [f"family {i // 2}" for i in range(30)]
    write(tmp_path / "train.h5", name=names, group=groups, normal=np.zeros(3))
    write(tmp_path / "test.h5", "test", 2)
    train, test = read(tmp_path, normalize=False), read(tmp_path, "test")
    data, label = clouds("train", range(3), 10, 64)
    assert train.classes == test.classes == CLASSES
    assert torch.equal(train.points, torch.from_numpy(data))
    assert train.labels.tolist() == label.tolist()
    assert train.names == names
    assert train.groups is not None
    assert [bool(a == b) for a, b in zip(train.groups[:-1], train.groups[1:], strict=True)] == [True, False] * 14 + [
        True
    ]
    assert train.source == [tmp_path / "train.h5"]
    assert len(test) == 6
    assert torch.allclose(test.points.norm(dim=2).amax(1), torch.ones(6), atol=1e-5)
    assert torch.equal(read(tmp_path, up="z", normalize=False).points, train.points.roll(-1, 2))


def test_what_files_may_hold_besides(tmp_path: Path) -> None:
    """Normals, labels (n, 1) of bytes, half or double precision far from the origin, classes as a data set or none."""
    data, label = clouds("train", range(3), 10, 64)
    expected = read_first(tmp_path, data=data, label=label)
    for entries in (
        {"data": np.concatenate([data, data + 7], axis=2), "label": label[:, None].astype(np.uint8)},
        {"data": data.astype(np.float64) + np.array([691_000, 5_334_000, 520])},
        {"classes": None},
    ):
        found = read_first(tmp_path, **entries)
        assert torch.allclose(found.points, expected.points, atol=1e-6)
        assert found.labels.tolist() == expected.labels.tolist()
    assert found.classes == ["class_0", "class_1", "class_2"]
    write(tmp_path / "train.h5", classes=None)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["classes"] = CLASSES
    assert read(tmp_path).classes == CLASSES


def read_first(folder: Path, **entries: Any) -> LabelledH5:
    write(folder / "train.h5", **entries)
    return read(folder)


def test_several_files_in_the_order_of_their_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(11):
        write(tmp_path / f"ply_data_train{number}.h5", per_class=1, name=[f"{number} {i}" for i in range(3)])
    write(tmp_path / "ply_data_Test0.hdf5", "test", 1)
    write(tmp_path / "training_augmented.h5", "test", 1)
    with caplog.at_level(logging.INFO):
        train = read(tmp_path)
    assert train.names is not None
    assert [name.split()[0] for name in train.names[::3]] == [str(number) for number in range(11)]
    assert len(read(tmp_path, "test")) == 3
    assert "other names are left out (training_augmented.h5)" in caplog.text


def test_a_validation_file(tmp_path: Path) -> None:
    """Is the validation part of training, or the test split where no other is."""
    for name, count in (("train", 4), ("valid", 2), ("test", 1)):
        write(tmp_path / f"{name}.h5", "test" if name == "test" else "train", count)
    train = read(tmp_path)
    assert train.validation is not None
    assert train.validation.tolist() == [False] * 12 + [True] * 6
    assert len(read(tmp_path, "test")) == 3
    (tmp_path / "test.h5").unlink()
    assert (len(read(tmp_path)), len(read(tmp_path, "test"))) == (12, 6)
    assert read(tmp_path).validation is None


def test_a_test_part_is_held_out_where_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = np.arange(30) // 2
    write(tmp_path / "train.h5", group=groups)
    train, test = read(tmp_path), read(tmp_path / "train.h5", "test")
    assert "no test split: 20 % of each class, " in caplog.text
    assert sorted([*train.positions.tolist(), *test.positions.tolist()]) == list(range(30))
    assert not {int(groups[i]) for i in train.positions} & {int(groups[i]) for i in test.positions}
    assert all(1 <= count <= 4 for count in test.labels.bincount(minlength=3).tolist())
    assert torch.equal(test.positions, read(tmp_path, "test").positions)
    assert len(read(tmp_path, labels=False)) == 30


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "transposed": (
        {"data": np.ones((30, 3, 64))},
        r"train\.h5: 'data' has shape \(30, 3, 64\), expected \(clouds, points",
    ),
    "whole numbers": ({"data": np.ones((30, 64, 3), int)}, "'data' holds int64, expected floating-point coordinates"),
    "not finite": ({"data": np.full((30, 64, 3), np.nan)}, r"cloud 0 holds NaN or infinite coordinates \(30 of 30"),
    "spots": ({"data": np.ones((30, 64, 3))}, "all points of cloud 0 are the same"),
    "no labels": ({"label": None}, "no data set 'label' in it; it holds data"),
    "label of no class": ({"label": np.arange(30)}, "cloud 3 has label 3, expected 0 to 2"),
    "a gap": ({"label": np.arange(30) % 3 * 2, "classes": None}, r"the labels are 0, 2, 4, expected .* without a gap"),
    "from one": ({"label": np.arange(30) % 3 + 1, "classes": None}, r"the labels are 1, 2, 3, expected"),
    "below zero": ({"label": np.arange(30) % 3 - 1, "classes": None}, r"the labels are -1, 0, 1, expected"),
    "one class": ({"classes": ["a"]}, "'classes' are a; at least 2 are needed"),
    "class twice": ({"classes": ["a", "b", "a"]}, "'classes' are a, b, a; at least 2 are needed, each once"),
    "numbers as classes": ({"classes": [1, 2, 3]}, "the attribute 'classes' is no list of texts"),
    "few names": ({"name": ["a"]}, "1 entries in 'name' for 30 clouds"),
    "few groups": ({"group": [1, 2]}, "2 entries in 'group' for 30 clouds"),
    "no two of a class": ({"group": np.arange(30) * 0}, "no test split, and none can be held out"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_content(kind: str, tmp_path: Path) -> None:
    entries, message = BAD[kind]
    write(tmp_path / "train.h5", **entries)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"nothing to train on in it, only no HDF5 file; expected train\.h5 and test\.h5"),
        (("test.h5", "a.h5"), r"nothing to train on in it, only a\.h5, test\.h5; expected"),
        (("train.h5", "train0.h5"), r"train\.h5 and train0\.h5 may each be meant"),
        (("train.h5", "Training.hdf5"), r"Training\.hdf5 and train\.h5 may each be meant"),
        (("train0.h5", "train2.h5"), r"number 1 is missing, though train2\.h5 is there"),
    ],
)
def test_files_that_do_not_make_a_set(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in files:
        write(tmp_path / name, per_class=2)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write(tmp_path / "train0.h5", name=["a"] * 30)
    write(tmp_path / "train1.h5")
    with pytest.raises(DataError, match=r"train1\.h5: 'name': False, but train0\.h5 has True"):
        read(tmp_path)
    write(tmp_path / "train1.h5", classes=["cup", "bowl", "jug"])
    with pytest.raises(
        DataError, match=r"train1\.h5: 'classes', as against train0\.h5: class 0 is 'cup', expected 'bowl'"
    ):
        read(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: does not exist; set data\.root to a folder with train\.h5"):
        read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"data\.root is required for data\.name=h5"):
        build_dataset("h5", "train")


def test_training_and_pretraining_read_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train.h5", num_points=160, classes=[*CLASSES, "vase"])
    write(tmp_path / "test.h5", "test", 2, 160, classes=None)
    overrides = ["data.name=h5", f"data.root={tmp_path}", "head.num_classes=null"]
    config = Config.of(small_config(), "test", overrides)
    assert config.head.num_classes == 4
    assert [len(part) for part in build_splits(config) if part is not None][-1] == 6
    assert "no training cloud of vase" in caplog.text
    pretraining = small_pretraining(
        tmp_path, data={"name": "h5", "root": str(tmp_path)}, pretrain={"probe": {"every": 0}}
    )
    assert len(build_splits(pretraining).train) > 0
