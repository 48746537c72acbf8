"""Rooms in HDF5 files: what is read of them, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.datasets import Rooms
from pointadapterx.errors import ConfigError, DataError
from tests.rooms import CLASSES, TRAIN, room, write_rooms


def test_rooms_as_their_files_have_them(tmp_path: Path) -> None:
    """Millimetres become metres; names say split, number and kind."""
    data = Rooms("train", root=write_rooms(tmp_path), num_points=128)
    assert data.scene_names == [f"train {number} kitchen" for number in range(len(TRAIN))]
    assert data.point_classes == Rooms.point_classes_in(root=tmp_path) == CLASSES
    points, labels = room(TRAIN[1], 105)
    order = np.lexsort(points.T)
    found = data.content.cloud(1)
    same = np.lexsort(found.T)
    assert np.allclose(found[same], points[order] / 1000, atol=1e-9)
    assert np.array_equal(data.content.labels[data.content.rows(1)][same], labels[order])


def replaced(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    """Writes another array into a file."""

    def write(file: h5py.File) -> None:
        values = change(file[key][...])
        del file[key]
        file[key] = values

    return write


def with_label(values: np.ndarray) -> np.ndarray:
    """A label that is no class, in the second room."""
    values[TRAIN[0] + 5] = 9
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__delitem__("label"), "no data set 'label' in it"),
        (lambda file: file.attrs.__delitem__("labels"), "no attribute 'labels' in it"),
        (replaced("label", with_label), r"train 1 kitchen: point 5 has label 9, expected 0 to 3 \(1 of 1900 labels"),
        (replaced("label", lambda values: values[:-3]), "8197 labels for 8200 points"),
        (replaced("offset", lambda values: values[::-1].copy()), "'offset' has to rise from 0 to 8200"),
        (replaced("offset", lambda values: values[:-1]), "'offset' has to rise from 0 to 8200"),
        (replaced("xyz_mm", lambda values: values / 1000), "'xyz_mm' holds float64, expected whole millimetres"),
        (replaced("xyz_mm", lambda values: values[:, :2]), r"points of shape \(8200, 2\), expected \(points, 3\)"),
        (replaced("kind", lambda values: values[:1]), r"\[1\] names or kinds for 4 rooms"),
    ],
)
def test_wrong_files_are_named(change: Callable[[h5py.File], None], message: str, tmp_path: Path) -> None:
    """In one line each."""
    with h5py.File(write_rooms(tmp_path) / "train.h5", "a") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        Rooms("train", root=tmp_path)


def test_missing_files_and_other_labels(tmp_path: Path) -> None:
    """The test file has to mean the same by its numbers."""
    with pytest.raises(ConfigError, match=r"data\.root is required for data\.name=rooms"):
        Rooms("train")
    with pytest.raises(DataError, match=r"train\.h5: does not exist; expected train\.h5 and test\.h5"):
        Rooms("test", root=tmp_path)
    with h5py.File(write_rooms(tmp_path) / "test.h5", "a") as file:
        file.attrs["labels"] = CLASSES[::-1]
    with pytest.raises(DataError, match=r"test\.h5: names 4 labels otherwise than train\.h5"):
        Rooms("test", root=tmp_path)


def test_the_doctor_looks_at_every_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mislabelled room is named, the others are counted."""
    with h5py.File(write_rooms(tmp_path) / "train.h5", "a") as file:
        replaced("label", with_label)(file)
    assert main(["doctor", "--name", "rooms", "--num-points", "256", str(tmp_path)]) != 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1900 labels of points are none of the classes, such as 9" in printed
    assert printed.endswith("1 to mend")


def test_scenes_that_are_read_as_clouds_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As doctor and train read a folder of HDF5, unless it is named."""
    assert main(["doctor", str(write_rooms(tmp_path))]) == 2
    assert "no data set 'data' in it; it holds " in (said := capsys.readouterr().err)
    assert "these are scenes, which data.name=rooms reads (doctor --name rooms)" in said
