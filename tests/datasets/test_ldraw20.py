"""LDraw-20: the shipped subset, a full set elsewhere, and the tool that makes the one from the other."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import ModuleType

import h5py
import pytest
import torch

from pointadapterx.datasets import LDraw20, build_dataset
from pointadapterx.datasets.ldraw20 import EMBEDDED, part_groups, part_number
from pointadapterx.errors import DataError
from tests.conftest import load_tool
from tests.synthetic import write_ldraw20


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("make_embedded")


@pytest.mark.parametrize(("split", "count", "least"), [("train", 806, 12), ("test", 262, 4)])
def test_shipped_files(split: str, count: int, least: int) -> None:
    data = build_dataset("ldraw20", split)
    assert data.points.shape == (count, 2048, 3)
    assert data.points.dtype == torch.float32
    assert len(data.classes) == 20
    assert int(data.labels.bincount(minlength=20).min()) == least
    assert data.points.mean(1).abs().max() < 1e-3  # centred, unit sphere, up to rounding to 1/2048
    assert (data.points.norm(dim=2).amax(1) - 1).abs().max() < 2e-3
    assert data.names is not None
    assert len(set(data.names)) == count


def test_no_part_is_on_both_sides_of_the_shipped_split() -> None:
    parts = [{part_number(name) for name in build_dataset("ldraw20", split).names or []} for split in ("train", "test")]
    assert not parts[0] & parts[1]


def test_shipped_files_are_small_attributed_and_the_documented_ones() -> None:
    readme = (EMBEDDED.parent / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in readme
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*")) <= 8_000_000
    for path in (EMBEDDED / "train.h5", EMBEDDED / "test.h5"):
        listed = re.search(rf"`ldraw20/{path.name}` \| \d+ \| `([0-9a-f]{{64}})`", readme)
        assert listed is not None
        assert listed[1] == hashlib.sha256(path.read_bytes()).hexdigest()
        with h5py.File(path) as file:
            assert b"CC BY 4.0" in file.attrs["licence"]
            assert b"LDraw.org" in file.attrs["attribution"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("3001.dat", "3001"),
        ("3001a.dat", "3001"),
        ("3001p01.dat", "3001"),
        ("u8205c01.dat", "u8205"),
        ("s\\3.dat", None),
    ],
)
def test_part_numbers(name: str, part: str | None) -> None:
    if part is None:
        with pytest.raises(ValueError, match="does not begin with a part number"):
            part_number(name)
    else:
        assert part_number(name) == part


def test_groups_join_variants_only() -> None:
    groups = part_groups(["3001.dat", "30010.dat", "3001a.dat", "u3001.dat"])
    assert groups[0] == groups[2]
    assert len(groups.unique()) == 3


def test_a_set_elsewhere(tmp_path: Path) -> None:
    write_ldraw20(tmp_path, train_per_class=4)
    data = build_dataset("ldraw20", "train", root=tmp_path)
    assert len(data) == 80
    assert data.groups is not None
    assert data.groups.bincount().tolist() == [2] * 40


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        build_dataset("ldraw20", "test", root=tmp_path)
    assert f"{tmp_path / 'test.h5'} (missing)" in str(error.value)
    assert (
        "Leave data.root out to use the shipped files. Make all of them by: pointadapterx data build ldraw20 FOLDER"
        in (str(error.value))
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", None, "no data set 'name' in it"),
        ("classes", None, "no attribute 'classes' in it"),
        ("classes", [f"c{i}" for i in range(20)], "class 0 is 'c0', expected 'plate'"),
        ("classes", ["plate"], "1 class names, expected 20"),
        ("name", ["x.dat"] * 40, "name 'x.dat' does not begin with a part number"),
    ],
)
def test_wrong_names_and_classes(tmp_path: Path, key: str, value: list[str] | None, message: str) -> None:
    write_ldraw20(tmp_path, num_points=32)
    with h5py.File(tmp_path / "test.h5", "r+") as file:
        store = file if key == "name" else file.attrs
        del store[key]
        if value is not None:
            store[key] = value
    with pytest.raises(DataError) as error:
        build_dataset("ldraw20", "test", root=tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "test.h5") in str(error.value)


def test_the_tool_keeps_shares_and_surfaces_and_repeats_itself(tool: ModuleType, tmp_path: Path) -> None:
    write_ldraw20(tmp_path / "full", train_per_class=4, test_per_class=2, num_points=256)
    for output in ("one", "two"):
        tool.make_embedded(tmp_path / "full", tmp_path / output, 0.5)
    for split, per_class in (("train", 2), ("test", 1)):
        one, two = (tmp_path / output / f"{split}.h5" for output in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        full, part = LDraw20(split, root=tmp_path / "full"), LDraw20(split, root=tmp_path / "one")
        assert part.labels.bincount().tolist() == [per_class] * 20
        for cloud, name, label in zip(part.points, part.names or [], part.labels, strict=True):
            source = (full.names or []).index(name)
            assert full.labels[source] == label
            nearest = torch.cdist(cloud[None], full.points[source][None]).min(dim=2).values
            assert nearest.max() < 1e-3  # the same points but for order and rounding


def test_the_tool_refuses_what_is_too_large(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ldraw20(tmp_path, num_points=64)
    monkeypatch.setattr(tool, "LIMIT", 1000)
    with pytest.raises(DataError, match=r"exceed the 1000 that are shipped; lower --fraction 1\.0"):
        tool.make_embedded(tmp_path, tmp_path / "out", 1.0)
