"""What folders of one's own files mean: read alike by training and by the doctor, or refused by both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointadapterx.build import build_splits
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds, build_dataset
from pointadapterx.datasets.layouts import hold_out
from pointadapterx.errors import ConfigError, DataError
from tests.conftest import small_config

POINTS = np.random.default_rng(5).normal(size=(40, 3))


def write(root: Path, *folders: str, count: int = 5) -> Path:
    """Clouds in each folder; a name with a dot is a single file."""
    for number, folder in enumerate(folders):
        path = root / folder
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, POINTS)
            continue
        path.mkdir(parents=True)
        for cloud in range(count):
            np.save(path / f"{cloud}.npy", POINTS * (1 + number, 1, 1) + cloud)
    return root


def read(root: Path, split: str = "train") -> PointClouds:
    data = build_dataset("folder", split, root=root, stored_points=40)
    assert isinstance(data, PointClouds)
    return data


# folders -> clouds of training, of its validation part, and of the test
LAYOUTS: dict[str, tuple[tuple[str, ...], int, int, int]] = {
    "parts": (("train/cup", "train/jug", "test/cup", "test/jug"), 10, 0, 10),
    "parts, other names": (("Training/cup", "Training/jug", "TEST/cup", "TEST/jug"), 10, 0, 10),
    "parts and a folder besides": (("train/cup", "train/jug", "test/cup", "test/jug", "new"), 10, 0, 10),
    "validation": (("train/cup", "train/jug", "valid/jug", "valid/cup", "test/cup", "test/jug"), 20, 10, 10),
    "validation for the test": (("train/cup", "train/jug", "val/cup", "val/jug"), 10, 0, 10),
    "training alone": (("train/cup", "train/jug"), 8, 0, 2),
    "classes": (("cup", "jug"), 8, 0, 2),
    "classes of folders": (("cup/2024/a", "jug/2025"), 8, 0, 2),
    "a class called train": (("cup", "train"), 8, 0, 2),
    "parts of classes": (("cup/train", "cup/test", "jug/train", "jug/test"), 10, 0, 10),
    "parts of classes with validation": (
        tuple(f"{c}/{p}" for c in ("a", "b") for p in ("train", "val", "test")),
        20,
        10,
        10,
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, train_count, val_count, test_count = LAYOUTS[kind]
    root = write(tmp_path, *folders)
    train, test = read(root), read(root, "test")
    assert len(train.classes) == 2
    assert train.classes == test.classes
    assert (len(train), len(test)) == (train_count, test_count)
    assert int(train.validation.sum() if train.validation is not None else 0) == val_count
    found = [
        (tuple(path.split("/")), split.labels[i]) for split in (train, test) for i, path in enumerate(split.names or ())
    ]
    assert all(train.classes[label] in path or root.name in path for path, label in found if len(path) > 2)
    assert len({cloud.numpy().tobytes() for split in (train, test) for cloud in split.points}) > 1
    assert ("no test split: 20 % of each class, 2 of 10 clouds, are held out" in caplog.text) == (test_count == 2)
    assert ("no test split, val is taken for it" in caplog.text) == (kind == "validation for the test")
    assert (read(root).checksum, read(root, "test").checksum) == (train.checksum, test.checksum)  # from caches
    assert main(["doctor", str(root), "--stored-points", "40", "--groups", "16", "--workers", "1"]) in (0, 1)
    printed = " ".join(capsys.readouterr().out.split())
    validation = [] if train.validation is None else [train.labels[train.validation]]
    trained = train.labels if train.validation is None else train.labels[~train.validation]
    counts = [str(int((labels == 0).sum())) for labels in (trained, *validation, test.labels)]
    assert f"{train.classes[0]} │ {' │ '.join(counts)} │" in printed


AMBIGUOUS: dict[str, tuple[tuple[str, ...], str]] = {
    "two of one part": (("train/cup", "train/jug", "Train/cup"), r"Train/ and train/ can each be the split train"),
    "validation twice": (("train/a", "train/b", "val/a", "valid/b"), r"val/ and valid/ can each be the split val"),
    "split or class": (
        ("train/steam", "train/diesel", "cup"),
        r"train/ can be the training split, or a class beside cup/",
    ),
    "splits or classes": (
        ("train", "test", "cup"),
        r"test/ and train/ hold no folders of classes, and beside them is cup/",
    ),
    "no training": (
        ("test/cup", "test/jug", "val/cup"),
        r"test/ and val/ has folders of classes, but there is no train/",
    ),
    "some divided": (("cup/train", "cup/test", "jug"), r"cup/ is divided into test/ and train/, but jug/ is not"),
    "only tests": (("cup/test", "jug/test"), r"are divided into test/, but none has train/"),
    "outside": (
        ("cup", "jug", "a.npy"),
        r"a\.npy: lies in no folder of a class; move it into one, remove it, or leave",
    ),
    "of no part": (("cup/train", "cup/a.npy", "jug/train"), r"cup/a\.npy: lies in no folder of a split"),
    "none to hold out": (("cup/0.npy", "jug/0.npy"), "no test split, and none can be held out"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_can_be_taken_in_two_ways_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, message = AMBIGUOUS[kind]
    write(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    assert main(["doctor", str(tmp_path), "--stored-points", "40", "--groups", "16", "--workers", "1"]) in (1, 2)
    assert len(read_all(tmp_path)) > 0  # pre-training does not ask


def read_all(root: Path) -> PointClouds:
    data = build_dataset("folder", "train", root=root, stored_points=40, labels=False)
    assert isinstance(data, PointClouds)
    return data


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (("a.npy",), r"\(none of its folders holds clouds\)"),
        (("train", "test"), r"\(test/ and train/ hold no folders of classes\)"),
        (("modelnet/cup", "modelnet/jug"), r"\(modelnet/ is its only folder of clouds\)"),
    ],
)
def test_a_folder_without_labels_says_why(folders: tuple[str, ...], why: str, tmp_path: Path) -> None:
    write(tmp_path, *folders)
    overrides = ["data.name=folder", f"data.root={tmp_path}", "head.num_classes=null"]
    with pytest.raises(ConfigError, match=f"has no labels, so it is for pre-training; put files into .*{why}"):
        Config.of(small_config(), "test", overrides)
    assert read(tmp_path).classes == ["unlabelled"]


def test_a_run_on_classes_alone(tmp_path: Path) -> None:
    write(tmp_path, "cup", "jug", count=10)
    overrides = ["data.name=folder", f"data.root={tmp_path}", "head.num_classes=null", "data.num_points=40"]
    overrides += ["backbone.num_groups=4", "backbone.group_size=4", "data.stored_points=40"]
    config = Config.of(small_config(), "test", overrides)
    assert config.head.num_classes == 2
    train, val, test = build_splits(config)
    assert val is not None
    assert (len(train) + len(val), len(test)) == (16, 4)


def test_what_is_held_out_hardly_changes_with_what_is_added() -> None:
    labels, keys = ["a"] * 50 + ["b"] * 10, [f"{n}.ply" for n in range(60)]
    held = hold_out(labels, keys)
    assert (held[:50].sum(), held[50:].sum()) == (10, 2)
    more = hold_out([*labels, "a", "c", "c"], [*keys, "60.ply", "61.ply", "62.ply"])
    assert (held != more[:60]).sum() <= 2
    order = np.random.default_rng(0).permutation(60)
    shuffled = hold_out([labels[i] for i in order], [keys[i] for i in order])
    assert np.array_equal(shuffled, held[order])


def test_objects_stay_on_one_side_when_a_test_part_is_held_out() -> None:
    """Also the few and large ones of class c, of which a fifth is less than one."""
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 12 + ["d"] * 3
    units = [*(i // 2 for i in range(40)), *(100 + i // 6 for i in range(12)), 200, 200, 200]
    held = hold_out(labels, [str(i) for i in range(55)], units)
    assert not {units[i] for i in np.flatnonzero(held)} & {units[i] for i in np.flatnonzero(~held)}
    assert [int(held[np.array(labels) == name].sum()) for name in "abcd"] == [4, 4, 6, 0]
