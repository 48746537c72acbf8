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
from tests.conftest import load_tool
from tests.synthetic import write_ldraw_parts


def test_shipped_files_are_small_attributed_and_the_documented_ones() -> None:
    readme = (EMBEDDED.parent / "README.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*")) <= 10_000_000
    for path in (EMBEDDED / "train.h5", EMBEDDED / "test.h5"):
        listed = re.search(rf"`ldraw_parts/{path.name}` \| \d+ \| `([0-9a-f]{{64}})`", readme)
        assert listed is not None
        assert listed[1] == hashlib.sha256(path.read_bytes()).hexdigest()
        with h5py.File(path) as file:
            assert b"CC BY 4.0" in file.attrs["licence"]
            assert b"LDraw.org" in file.attrs["attribution"]


def test_shipped_clouds() -> None:
    counts, parts, seen = {"train": 983, "test": 488}, {}, torch.zeros(72, dtype=torch.int64)
    checksums = {"train": "a9b32e280ee626babf783fbd3c6b84d0", "test": "8aa811b57d6d1c64db03765611d3e42d"}
    for split, count in counts.items():
        data = build_dataset("ldraw_parts", split)
        assert isinstance(data, LDrawParts)
        assert data.points.shape == (count, 2048, 3)
        assert data.points.mean(1).abs().max() < 1e-3  # centred, unit sphere, up to rounding to 1/2048
        assert (data.points.norm(dim=2).amax(1) - 1).abs().max() < 2e-3
        assert data.checksum == checksums[split]  # the same on every machine
        assert torch.equal(data.targets.condition, data.labels)
        seen += data.targets.points.flatten().bincount(minlength=72)
        parts[split] = {part_number(name) for name in data.names or []}
    assert seen.min() > 2000
    assert data.point_classes == [name for names in LDRAW_PARTS.values() for name in names]
    assert not parts["train"] & parts["test"]


def test_the_tool_keeps_all_test_clouds_and_a_share_of_the_others(tmp_path: Path) -> None:
    tool = load_tool("make_embedded_parts")
    write_ldraw_parts(tmp_path / "full", per_category=4, num_points=128)
    for output in ("one", "two"):
        tool.make_embedded_parts(tmp_path / "full", tmp_path / output, 0.5)
    for split, share in (("train", 0.5), ("test", 1.0)):
        one, two = (tmp_path / output / f"{split}.h5" for output in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        full, part = LDrawParts(split, root=tmp_path / "full"), LDrawParts(split, root=tmp_path / "one")
        assert part.labels.bincount(minlength=16).tolist() == [4 * share] * 16
        for number, name in enumerate(part.names or []):
            source = (full.names or []).index(name)
            assert part.labels[number] == full.labels[source]
            distance, nearest = torch.cdist(part.points[number], full.points[source]).min(1)
            assert distance.max() < 1e-3  # of rounding
            assert torch.equal(full.targets.points[source, nearest], part.targets.points[number])
    tool.LIMIT = 10
    with pytest.raises(DataError, match=r"exceed the 10 that are shipped; lower --fraction 0\.5"):
        tool.make_embedded_parts(tmp_path / "full", tmp_path / "three", 0.5)


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
