"""LDraw parts with a label for each point: the shipped copy, a full set elsewhere, and the tool that makes the copy."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.datasets import build_dataset
from pointadapterx.datasets.ldraw20 import part_number
from pointadapterx.datasets.ldraw_parts import EMBEDDED, LDRAW_PARTS, LDrawParts
from pointadapterx.datasets.parts import numbers_of
from pointadapterx.errors import DataError
from pointadapterx.ops import farthest_point_sample
from tests.conftest import load_tool
from tests.synthetic import write_ldraw_parts


def test_shipped_files_are_small_attributed_and_the_documented_ones() -> None:
    readme = (EMBEDDED.parent / "README.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*")) <= 8_000_000
    for path in (EMBEDDED / "train.h5", EMBEDDED / "test.h5"):
        listed = re.search(rf"`ldraw_parts/{path.name}` \| \d+ \| `([0-9a-f]{{64}})`", readme)
        assert listed is not None
        assert listed[1] == hashlib.sha256(path.read_bytes()).hexdigest()
        with h5py.File(path) as file:
            assert b"CC BY 4.0" in file.attrs["licence"]
            assert b"LDraw.org" in file.attrs["attribution"]


def test_shipped_clouds() -> None:
    counts, parts, seen = {"train": 1629, "test": 488}, {}, torch.zeros(72, dtype=torch.int64)
    checksums = {"train": "0cf61579d3ec117020aed88a41230d6e", "test": "ff85bc108505a45490cb57c445bd96fb"}
    for split, count in counts.items():
        data = build_dataset("ldraw_parts", split)
        assert isinstance(data, LDrawParts)
        assert data.points.shape == (count, 1024, 3)
        assert data.points.mean(1).abs().max() < 1e-3  # centred, unit sphere, up to rounding to 1/2048
        assert (data.points.norm(dim=2).amax(1) - 1).abs().max() < 2e-3
        assert data.checksum == checksums[split]  # the same on every machine
        assert torch.equal(data.targets.condition, data.labels)
        seen += data.targets.points.flatten().bincount(minlength=72)
        parts[split] = {part_number(name) for name in data.names or []}
    assert seen.min() > 900
    assert data.point_classes == [name for names in LDRAW_PARTS.values() for name in names]
    assert not parts["train"] & parts["test"]


def test_the_tool_keeps_all_clouds_and_the_labels_of_their_points(tmp_path: Path) -> None:
    tool = load_tool("make_embedded_parts")
    write_ldraw_parts(tmp_path / "full", per_category=2, num_points=128)
    for output in ("one", "two"):
        tool.make_embedded_parts(tmp_path / "full", tmp_path / output, 128)
    for split in ("train", "test"):
        one, two = (tmp_path / output / f"{split}.h5" for output in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        full, part = LDrawParts(split, root=tmp_path / "full"), LDrawParts(split, root=tmp_path / "one")
        assert part.points.shape == (32, 128, 3)
        assert part.names == full.names
        assert torch.equal(part.labels, full.labels)
        for cloud, parts, source, labels in zip(
            part.points, part.targets.points, full.points, full.targets.points, strict=True
        ):
            moved = source - source.mean(0)
            distance, nearest = torch.cdist(cloud, moved / moved.norm(dim=1).max()).min(1)
            assert distance.max() < 2e-3  # of rounding, twice
            assert torch.equal(labels[nearest], parts)
    tool.LIMIT = 10
    with pytest.raises(DataError, match="exceed the 10 that are shipped; lower --points 128"):
        tool.make_embedded_parts(tmp_path / "full", tmp_path / "three", 128)


def test_the_tool_samples_as_models_do() -> None:
    clouds = np.random.default_rng(0).integers(-2048, 2048, (3, 90, 3))
    expected = farthest_point_sample(torch.from_numpy(clouds).float(), 30)
    np.testing.assert_array_equal(load_tool("make_embedded_parts").farthest(clouds, 30), expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pid", None, "no data set 'pid'"),
        ("pid", np.zeros((32, 7), np.uint8), "'pid' has shape (32, 7), expected (32, 64): a part for each point"),
        ("pid", np.zeros((32, 64), np.float32), "labels of points are float32, expected whole numbers"),
        ("label", np.zeros(7, np.int64), "'label' has shape (7,), expected one category for each of 32 objects"),
        ("label", np.full(32, 16), "cloud 0 has label 16, expected 0 to 15"),
        ("name", ["a.dat"] * 31, "31 entries in 'name' for 32 objects"),
        ("name", ["a.dat"] * 32, "name 'a.dat' does not begin with a part number"),
        ("data", np.zeros((32, 64, 2), np.float32), "'data' has shape (32, 64, 2), expected (objects, points, 3)"),
        ("classes", ["brick"] * 16, "class 1 is 'brick', expected 'plate'"),
        ("classes", None, "no attribute 'classes'"),
    ],
)
def test_wrong_files(tmp_path: Path, key: str, value: np.ndarray | None, message: str) -> None:
    write_ldraw_parts(tmp_path, num_points=64)
    with h5py.File(tmp_path / "test.h5", "r+") as file:
        store = file.attrs if key == "classes" else file
        del store[key]
        if value is not None:
            store[key] = value
    with pytest.raises(DataError) as error:
        build_dataset("ldraw_parts", "test", root=tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "test.h5") in str(error.value)


def test_a_part_of_another_category(tmp_path: Path) -> None:
    write_ldraw_parts(tmp_path, num_points=64)
    wheel = numbers_of(LDRAW_PARTS)["wheel"][0]
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["pid"][3, 5] = wheel
    words = rf"point 5 of object 3 has label {wheel}, expected 5 to 9 of the category plate \(1 of 32 objects"
    with pytest.raises(DataError, match=words):
        build_dataset("ldraw_parts", "train", root=tmp_path)
