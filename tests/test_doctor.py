"""The doctor finds what was planted, and nothing in a healthy set."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.datasets import build_dataset, cloud_reader
from pointadapterx.doctor import Options, diagnose, read_entries, reading

trimesh = pytest.importorskip("trimesh", exc_type=ImportError)

SIDES = {"cup": (1.0, 1.5, 1.0), "plate": (2.0, 0.8, 2.0)}
COUNTS = {"train": 8, "test": 5}


def cloud(label: str, seed: int, points: int = 2100) -> np.ndarray:
    """Points in a box of the class's sides, a little larger or smaller each time."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (points, 3)) * SIDES[label] * rng.uniform(0.9, 1.1, 3)


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, count in COUNTS.items():
        for label in SIDES:
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                seed = hash((split == "train", label == "cup", number)) % 2**32
                np.save(root / split / label / f"{number}.npy", cloud(label, seed))
    return root


def findings(root: Path) -> list[str]:
    return [finding.text for finding in diagnose(read_entries(root, Options(workers=1)), wanted=2048, groups=64)]


def test_nothing_is_found_in_a_healthy_set(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(healthy) == []
    assert main(["doctor", str(healthy), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "nothing to mend" in printed
    assert "plate" in printed
    assert "2,100" in printed


def each(root: Path, split: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (root / split).rglob("*.npy"):
        np.save(path, change(np.load(path)))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)))


def with_nan(points: np.ndarray) -> np.ndarray:
    points[5, 1] = np.nan
    return points


MESHES = (("train", "other.stl"), ("test", "one.stl"))
DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (lambda r: (r / "train/cup/0.npy").write_bytes(b"\x93NUMPY broken"), "cannot be read as .npy"),
    "empty": (lambda r: (r / "train/cup/0.npy").write_bytes(b""), "the file is empty"),
    "pointer": (
        lambda r: (r / "test/cup/0.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1"),
        "Git LFS pointer",
    ),
    "too few points": (lambda r: rewrite(r / "train/cup/1.npy", lambda p: p[:40]), "fewer than 64 different points"),
    "sparse": (lambda r: rewrite(r / "train/cup/1.npy", lambda p: p[:500]), "fewer than 2048 different points"),
    "padding": (
        lambda r: rewrite(r / "train/cup/1.npy", lambda p: np.concatenate([p, p, p])),
        "most points are copies of others",
    ),
    "flat": (lambda r: rewrite(r / "train/cup/1.npy", lambda p: p * (1, 1, 0)), "flat in one direction"),
    "leak": (
        lambda r: np.save(r / "test/cup/9.npy", np.load(r / "train/cup/3.npy")[::-1] * 3 + 5),
        "the same cloud in training and test: train/cup/3.npy, test/cup/9.npy",
    ),
    "mesh leak": (
        lambda r: [trimesh.creation.icosphere(2).export(r / split / "cup" / name) for split, name in MESHES],
        "the same cloud in training and test: train/cup/other.stl, test/cup/one.stl",
    ),
    "two labels": (
        lambda r: shutil.copy(r / "train/cup/3.npy", r / "train/plate/9.npy"),
        "the same cloud in two classes",
    ),
    "copies": (lambda r: shutil.copy(r / "train/cup/3.npy", r / "train/cup/9.npy"), "copies within a split"),
    "strange class": (lambda r: (r / "test/plate").rename(r / "test/dish"), "classes of the test alone: dish"),
    "rare class": (
        lambda r: [path.unlink() for path in sorted((r / "train/plate").iterdir())[2:]],
        "classes with fewer than 5 training clouds: plate (2)",
    ),
    "two spellings": (
        lambda r: shutil.copytree(r / "train/plate", r / "train/Plate_") and (r / "train/Plate_/0.npy"),
        "classes that may be one: Plate_, plate",
    ),
    "outside": (
        lambda r: shutil.copy(r / "train/cup/0.npy", r / "train/0.npy"),
        "in no folder of a class: train/0.npy",
    ),
    "no test": (lambda r: [path.unlink() for path in (r / "test").rglob("*.npy")], "split test has no cloud"),
    "unit": (lambda r: each(r, "test", lambda p: p * 1000), "times as large as training clouds"),
    "axis": (lambda r: each(r, "test", lambda p: p[:, [2, 0, 1]]), "with z in place of y up"),
    "far point": (
        lambda r: rewrite(r / "train/cup/1.npy", lambda p: np.concatenate([p, [[1e4, 0, 0]]])),
        "more than 30 times larger or smaller",
    ),
    "lone points": (
        lambda r: rewrite(r / "train/cup/1.npy", lambda p: np.concatenate([p, [[50, 0, 0]], [[0, 40, 0]]])),
        "train/cup/1.npy: 2 of 2102 points lie 5 times farther out than 99 % of them",
    ),
    "no data": (
        lambda r: rewrite(r / "train/cup/1.npy", lambda p: np.concatenate([p, np.full((17, 3), (0.1, 0, -9999))])),
        "train/cup/1.npy: 17 of 2117 points have z = -9999, which stands for no data",
    ),
    "no echo": (
        lambda r: rewrite(r / "train/cup/1.npy", lambda p: np.concatenate([np.zeros((40, 3)), p + 9])),
        "train/cup/1.npy: 40 of 2140 points are exactly (0, 0, 0), as for no data or padding",
    ),
    "float32": (
        lambda r: rewrite(r / "train/cup/1.npy", lambda p: (3 * p + (5e5, 4.5e6, 100)).astype(np.float32)),
        "different values of y among 2100 points: float32, with steps of 0.5 at 4500002, has spoilt the coordinates",
    ),
}
NOTES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not finite": (
        lambda r: rewrite(r / "test/cup/1.npy", with_nan),
        "test/cup/1.npy: 1 of 2100 points have NaN or infinite coordinates and are left out",
    ),
    "grid": (
        lambda r: rewrite(r / "test/cup/1.npy", lambda p: np.stack([p[:, 0], p[:, 1].round(1), p[:, 2]], axis=1)),
        "different values of y among 2100 points",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, healthy: Path) -> None:
    plant, expected = DEFECTS[defect]
    plant(healthy)
    found = findings(healthy)
    assert any(expected in text for text in found), found
    assert main(["doctor", str(healthy), "--workers", "1"]) == 1


@pytest.mark.parametrize("kind", NOTES)
def test_what_may_be_meant_is_a_note(kind: str, healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant, expected = NOTES[kind]
    plant(healthy)
    assert any(expected in text for text in findings(healthy))
    assert main(["doctor", str(healthy), "--workers", "1"]) == 0
    assert "note: test/cup/1.npy: " in capsys.readouterr().out
    assert main(["doctor", str(healthy), "--workers", "1", "--nan", "error"]) == (1 if kind == "not finite" else 0)


def test_clouds_with_far_points_are_not_taken_for_the_same(healthy: Path) -> None:
    for split in COUNTS:
        each(healthy, split, lambda p: np.concatenate([p, [[-9999.0, -9999.0, -9999.0], [1e7, 0, 0]]]))
    found = findings(healthy)
    assert not any("same cloud" in text or "copies" in text for text in found), found
    for words in ("have y = -9999, which stands for no data", "lie 5 times farther out"):
        assert any(" and 22 more: 1 of 2102 points " in text and words in text for text in found), found


def test_every_file_is_listed_if_wanted(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = sorted((healthy / "train" / "cup").iterdir())
    for path in bad:
        path.write_bytes(b"")
    command = ["doctor", str(healthy), "--workers", "1"]
    assert main(command) == 1
    printed = capsys.readouterr().out
    listed = ", ".join(f"train/cup/{path.name}" for path in bad[:4])
    assert f"TO MEND: 8 files ({listed} and 4 more): the file is empty (0 bytes); download it again\n" in printed
    assert main([*command, "--all"]) == 1
    printed = capsys.readouterr().out
    for path in bad:
        line = f"TO MEND: {path}: the file is empty (0 bytes); download it again"
        assert line in printed.splitlines()  # and nothing after it


def test_a_validation_part_is_a_column_of_its_own(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in SIDES:
        (healthy / "val" / label).mkdir(parents=True)
        for number in range(4):
            np.save(healthy / "val" / label / f"{number}.npy", cloud(label, 1000 + number + ord(label[0])))
    command = ["doctor", str(healthy), "--workers", "1"]
    assert main(command) == 0
    assert "cup │ 8 │ 4 │ 5 │ 2,100" in " ".join(capsys.readouterr().out.split())
    shutil.copy(healthy / "train" / "cup" / "3.npy", healthy / "val" / "cup" / "9.npy")
    assert main(command) == 1
    assert "the same cloud in training and validation: train/cup/3.npy, val/cup/9.npy" in capsys.readouterr().out


def test_columns_are_named(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(healthy.rglob("*.npy")):
        np.savetxt(path.with_suffix(".csv"), np.load(path), delimiter=",", header="a,b,c", comments="")
        path.unlink()
    assert main(["doctor", str(healthy), "--workers", "1"]) == 1
    assert "of which no three are known as x, y and z; say which are" in capsys.readouterr().out
    assert main(["doctor", str(healthy), "--workers", "1", "--columns", "a,b,c"]) == 0
    assert main(["doctor", str(healthy), "--workers", "1", "--columns", "a,b"]) == 2
    assert "need three different columns" in capsys.readouterr().err


def test_a_table_and_a_folder_without_labels(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["file,label,split"]
    for path in sorted(healthy.rglob("*.npy")):
        split, label, _ = path.relative_to(healthy).parts
        lines.append(f"{path.relative_to(healthy)},{label},{split}")
    (healthy / "clouds.csv").write_text("\n".join(lines))
    assert findings(healthy / "clouds.csv") == []
    assert findings(healthy / "train" / "cup") == []
    flat = healthy / "train" / "cup"
    assert main(["doctor", str(flat), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"note: {flat}: has no labels, so it is for pre-training; put files into {flat}/{{train,test}}/" in printed
    assert "y is taken as up; where z is, train with data.up=z" in printed
    assert main(["doctor", str(flat), "--workers", "1", "--unlabelled"]) == 0
    assert "pre-training" not in capsys.readouterr().out
    assert main(["doctor", str(healthy / "nowhere")]) == 2
    assert "is no folder, no table" in capsys.readouterr().err


def test_a_data_set_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--name", "ldraw20"]) == 0
    printed = capsys.readouterr().out
    assert "windscreen" in printed
    assert "nothing to mend" in printed
    with pytest.raises(SystemExit):
        main(["doctor"])


# What it shares with training


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a file was read again")


def test_files_are_read_once_by_the_doctor_and_training(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trimesh.creation.icosphere(2).export(healthy / "train" / "cup" / "mesh.stl")
    rewrite(healthy / "train/cup/1.npy", with_nan)
    assert main(["doctor", str(healthy), "--workers", "1"]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(logging.getLogger("pointadapterx"), "propagate", True)  # the command has its own handler
    with monkeypatch.context() as patch:
        patch.setattr(cloud_reader, "load_cloud", refuse)
        caplog.clear()
        shared = [build_dataset("folder", split, root=healthy) for split in ("train", "test")]
        warned = caplog.messages.copy()
        assert "1 of 2100 points have NaN or infinite coordinates" in "".join(warned)
        patch.setattr(reading, "load_cloud", refuse)
        assert main(["doctor", str(healthy), "--workers", "1"]) == 0
    assert capsys.readouterr().out == first
    for path in healthy.rglob("*.cache"):
        path.unlink()
    caplog.clear()
    alone = [build_dataset("folder", split, root=healthy) for split in ("train", "test")]
    assert [data.checksum for data in shared] == [data.checksum for data in alone]
    assert caplog.messages == warned


def test_after_training_the_doctor_reads_but_does_not_reduce(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says needs whole files."""
    before = [build_dataset("folder", split, root=healthy).checksum for split in ("train", "test")]
    monkeypatch.setattr(cloud_reader.CloudReader, "reduce", refuse)
    assert findings(healthy) == []
    assert [build_dataset("folder", split, root=healthy).checksum for split in ("train", "test")] == before


def test_a_set_that_training_refuses_is_not_cached(healthy: Path) -> None:
    beside = healthy / "train" / "pointadapterx-2048pts-centred-examined.cache"
    rewrite(healthy / "train/cup/1.npy", lambda p: p[:500])
    assert "fewer than 2048 different points" in findings(healthy)[0]
    assert list((healthy / "train").glob("*.cache")) == [beside]
    beside.write_bytes(b'{"state": 1, "clouds": [{}]}')
    assert "fewer than 2048 different points" in findings(healthy)[0]
    (healthy / "train/cup/1.npy").write_bytes(b"")
    assert "the file is empty" in findings(healthy)[0]


def test_what_training_says_the_doctor_says(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(healthy / "test")
    command = ["doctor", str(healthy), "--workers", "1"]
    assert main(command) == 0
    assert f"note: {healthy}: no test split: 20 % of each class, 4 of 16 clouds" in capsys.readouterr().out
    (healthy / "train" / "README.txt").write_text("read me")
    assert main(command) == 1
    assert main([*command, "--suffixes", "npy,ply"]) == 0
    assert main([*command, "--suffixes", "plyy"]) == 2
    assert "--suffixes 'plyy' is unknown; did you mean 'ply'?" in capsys.readouterr().err
    assert main([*command, "--unlabelled", "--suffixes", "npy"]) == 0
    assert "no label" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--suffixes=ply", "--columns=0,1,2", "--nan=error"])
def test_options_of_files_are_refused_for_a_set_by_its_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--name", "ldraw20", option]) == 2
    key = option.partition("=")[0]
    line = f"error: {key}: belongs to files of one cloud each, but this is data.name=ldraw20; remove it"
    assert capsys.readouterr().err.strip() == line


def test_hdf5_files_of_many_clouds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.arange(16) % 2
    for split, seed in (("train", 0), ("test", 100)):
        with h5py.File(tmp_path / f"{split}.h5", "w") as file:
            file["data"] = np.stack([cloud(("cup", "plate")[label], seed + i, 2048) for i, label in enumerate(labels)])
            file["label"] = labels
            file.attrs["classes"] = ["cup", "plate"]
    assert main(["doctor", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "cup │ 8 │ 8 │ 2,048" in printed
    assert "read as data.name=h5" in printed
    with h5py.File(tmp_path / "test.h5", "r+") as file:
        file["data"][3] = file["data"][1] * 100
    assert main(["doctor", "--name", "h5", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "copies within a split: test 3" in printed
    assert "more than 30 times larger or smaller than the others: test 3" in printed
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        del file["label"]
    assert main(["doctor", str(tmp_path / "train.h5")]) == 0
    printed = capsys.readouterr().out
    assert "no label" in printed
    assert "train.h5: has no entry label (n,), so it is for pre-training; add it to adapt to it" in printed
