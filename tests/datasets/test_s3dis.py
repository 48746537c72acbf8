"""S3DIS in both layouts: the same rooms, labels and splits; files that are wrong are named."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pointadapterx.datasets import S3DIS
from pointadapterx.datasets.s3dis import CONVERTED, RAW, S3DIS_CLASSES
from pointadapterx.errors import ConfigError, DataError

ROOMS = {"Area_1": ["office_1", "hallway_2"], "Area_2": ["storage_1"], "Area_5": ["hallway_6"]}
OBJECTS = {"ceiling_1": 200, "chair_2": 120, "stairs_1": 80}  # the last is no class
COUNT = sum(OBJECTS.values())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A few rooms in the raw layout."""
    for area, rooms in ROOMS.items():
        for number, name in enumerate(rooms):
            folder = tmp_path / RAW / area / name / "Annotations"
            folder.mkdir(parents=True)
            draws = np.random.default_rng(number + len(area + name))
            for object_name, count in OBJECTS.items():
                rows = np.c_[draws.uniform([5, -3, 0], [7, -1, 3], (count, 3)), draws.integers(0, 256, (count, 3))]
                np.savetxt(folder / f"{object_name}.txt", rows, fmt="%.3f")
    return tmp_path


def converted(root: Path, target: Path) -> None:
    """The same rooms as PointNet's code converts them."""
    target.mkdir(parents=True)
    for area, rooms in ROOMS.items():
        for name in rooms:
            parts = []
            for object_name in sorted(OBJECTS):
                rows = np.loadtxt(root / RAW / area / name / "Annotations" / f"{object_name}.txt")
                label = object_name.split("_")[0]
                number = S3DIS_CLASSES.index(label if label in S3DIS_CLASSES else "clutter")
                parts.append(np.c_[rows, np.full(len(rows), number)])
            content = np.concatenate(parts)
            content[:, :3] -= content[:, :3].min(axis=0)
            np.save(target / f"{area}_{name}.npy", content)


def test_both_layouts_are_the_same_rooms(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """y up, least coordinates 0, unknown names are clutter; the cache is read the second time."""
    caplog.set_level(logging.INFO)
    raw = S3DIS("train", root=root, num_points=64, workers=1)
    assert raw.names is not None
    assert list(dict.fromkeys(raw.names)) == ["Area_1_hallway_2", "Area_1_office_1", "Area_2_storage_1"]
    assert "rooms of area_1 2 of 44, area_2 1 of 40, area_3 0 of 23" in caplog.text
    converted(root, tmp_path / "other" / CONVERTED)
    other = S3DIS("train", root=tmp_path / "other", num_points=64, workers=1)
    rows = np.loadtxt(root / RAW / "Area_1" / "office_1" / "Annotations" / "chair_2.txt")
    for data in (raw, other):
        clouds = data.content
        assert clouds.counts.tolist() == [COUNT] * 3
        points, labels = clouds.cloud(1), clouds.labels[clouds.rows(1)]
        assert points.min(axis=0).tolist() == [0, 0, 0]
        assert np.bincount(labels, minlength=13).tolist() == [200, 0, 0, 0, 0, 0, 0, 0, 120, 0, 0, 0, 80]
        heights = np.sort(points[labels == 8][:, 1])
        assert np.allclose(heights - heights[0], np.sort(rows[:, 2]) - rows[:, 2].min(), atol=2e-3)  # z was up
    assert np.array_equal(np.sort(raw.content.cloud(2), axis=0), np.sort(other.content.cloud(2), axis=0))
    caplog.clear()
    again = S3DIS("train", root=root, num_points=64, workers=1)
    assert "keeping" not in caplog.text
    assert again.checksum == raw.checksum
    assert torch.equal(again.draw(torch.arange(4))[0], raw.draw(torch.arange(4))[0])


def test_areas_are_the_splits(root: Path) -> None:
    """Area 5 by default, another by name; one cache serves all of them."""
    assert set(S3DIS("test", root=root, num_points=64, workers=1).names or ()) == {"Area_5_hallway_6"}
    other = S3DIS("test", root=root, variant="area_1", num_points=64)
    assert set(other.names or ()) == {"Area_1_hallway_2", "Area_1_office_1"}
    assert len(S3DIS("train", root=root, variant="area_1", num_points=64).scene_names) == 2
    with pytest.raises(ConfigError, match=r"data\.variant 'area_7' is unknown; did you mean 'area_6'"):
        S3DIS("test", root=root, variant="area_7")
    with pytest.raises(DataError, match=r"no room of the test split \(tested on area_3\); S3DIS is Stanford's"):
        S3DIS("test", root=root, variant="area_3")


def test_a_cache_of_other_files_is_written_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And so is a damaged one."""
    before = S3DIS("test", root=root, num_points=64, workers=1).checksum
    file = root / RAW / "Area_5" / "hallway_6" / "Annotations" / "chair_2.txt"
    os.utime(file, (1, 1))
    assert S3DIS("test", root=root, num_points=64, workers=1).checksum == before
    assert "the cache is stale" in caplog.text
    (points,) = root.rglob("points.f32")
    points.write_bytes(points.read_bytes()[:-12])
    assert S3DIS("test", root=root, num_points=64, workers=1).checksum == before
    assert "the cache is damaged" in caplog.text


def test_the_odd_byte_of_hallway_6(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is in a colour, which is not read; in a coordinate it would be refused."""
    file = root / RAW / "Area_5" / "hallway_6" / "Annotations" / "ceiling_1.txt"
    lines = file.read_bytes().splitlines()
    first, last = lines[7].rsplit(b" ", 1)
    lines[7] = first + b"\x10" + last
    file.write_bytes(b"\n".join(lines))
    data = S3DIS("test", root=root, num_points=64, workers=1)
    assert data.content.counts.tolist() == [COUNT]
    assert r"line 8 has the byte b'\x10' in a colour" in caplog.text
    lines[3] = b"5.1\xff23 " + lines[3]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"ceiling_1\.txt: line 4 has the byte b'\\xff' in a coordinate"):
        S3DIS("test", root=root, num_points=64, workers=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 2\n3 4\n", r"sofa_1\.txt: not rows of x y z r g b"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
        (b"nan 1 2 3 4 5\n", r"sofa_1\.txt"),
    ],
)
def test_broken_files_are_named(root: Path, content: bytes, message: str) -> None:
    """Nothing is left half-written; the doctor goes on to the next room."""
    file = root / RAW / "Area_1" / "office_1" / "Annotations" / "sofa_1.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        S3DIS("train", root=root, num_points=64, workers=1)
    assert not list(root.rglob("points.f32"))
    found = {one.name: one for one in S3DIS.each_cloud("train", root=root)}
    assert len(found) == 3
    assert isinstance(found["Area_1_office_1"].points, str)
    assert len(found["Area_2_storage_1"].points) == COUNT


def test_nothing_there(tmp_path: Path) -> None:
    """Says what is expected, and where to obtain it."""
    with pytest.raises(DataError, match=r"Expected .*stanford_indoor3d/Area_1_office_1\.npy or .*S3DIS is Stanford's"):
        S3DIS("test", root=tmp_path)
