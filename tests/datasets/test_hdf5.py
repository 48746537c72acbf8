"""HDF5 files that point elsewhere, or say that they hold what they do not: refused by every reader, unopened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.datasets import build_dataset
from pointadapterx.datasets.cache import cached_points
from pointadapterx.datasets.hdf5 import open_h5, read_numbers, read_text, read_text_attribute
from pointadapterx.datasets.point_files import read_cloud
from pointadapterx.errors import DataError

CLOUDS = np.random.default_rng(0).normal(size=(4, 64, 3)).astype(np.float32)
HUGE = (10**8, 2048, 3)  # 2.5 TB
Write = Callable[[h5py.File], object]


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(CLOUDS.shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", CLOUDS.shape)
    file.create_virtual_dataset("data", layout)


def wide_chunk(file: h5py.File) -> None:
    """Two numbers, in a part of 400 MB."""
    data = file.create_dataset("data", (2,), "f4", chunks=(10**8,), maxshape=(None,), compression="gzip")
    data.id.write_direct_chunk((0,), b"a few bytes")


def other_filter(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(CLOUDS.shape)
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2))
    space = h5py.h5s.create_simple(CLOUDS.shape)
    data = h5py.h5d.create(file.id, b"data", h5py.h5t.IEEE_F32LE, space, plan)
    data.write_direct_chunk((0, 0, 0), CLOUDS.tobytes())


def through_a_link(file: h5py.File) -> None:
    file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
    file["data"] = h5py.SoftLink("/elsewhere/data")


def in_a_circle(file: h5py.File) -> None:
    file["data"] = h5py.SoftLink("/data")


BAD: dict[str, tuple[Write, str]] = {
    "external link": (
        lambda f: f.update({"data": h5py.ExternalLink("other.h5", "/data")}),
        "is a link to another file",
    ),
    "link to a link": (through_a_link, "is a link to another file, 'other.h5'; write the arrays themselves"),
    "circle of links": (in_a_circle, "leads through more than 16 links"),
    "virtual": (virtual, "is a virtual data set, of other.h5; write the arrays"),
    "external storage": (
        lambda f: f.create_dataset("data", (10, 3), "f4", external=[("/etc/passwd", 0, 120)]),
        "is kept in other files, '/etc/passwd' is the first",
    ),
    "huge and not there": (lambda f: f.create_dataset("data", HUGE, "f4"), "2,457,600,000,000 bytes, but 0 are stored"),
    "huge, in parts": (
        lambda f: f.create_dataset("data", HUGE, "f4", chunks=(16, 2048, 3)),
        "but 0 of its 6250000 chunks are in the file",
    ),
    "some parts": (
        lambda f: f.create_dataset("data", CLOUDS.shape, "f4", chunks=(1, 64, 3)).__setitem__(0, CLOUDS[0]),
        "but 1 of its 4 chunks are in the file",
    ),
    "wide part": (wide_chunk, "but 11 are stored for it"),
    "another filter": (other_filter, "(HDF5's number 32001), which is not installed"),
    "records": (lambda f: f.create_dataset("data", data=np.ones(3, [("x", "f4"), ("y", "f4")])), "records of x, y"),
    "references": (
        lambda f: f.create_dataset("data", data=np.array([f.ref] * 3, h5py.ref_dtype)),
        "references, expected numbers",
    ),
    "text": (lambda f: f.update({"data": ["a", "b"]}), "holds text, expected numbers"),
    "complex": (lambda f: f.update({"data": np.ones((3, 3), complex)}), "holds complex128, expected numbers"),
    "nothing": (lambda f: f.update({"data": h5py.Empty("f4")}), "is empty"),
    "group": (lambda f: f.create_group("data"), "no data set 'data'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_in_the_file_is_not_read(kind: str, tmp_path: Path) -> None:
    """By the reader of one cloud a file, of many, and of caches, which may lie beside the data of others."""
    write, message = BAD[kind]
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = CLOUDS
    path = tmp_path / "clouds.h5"
    with h5py.File(path, "w") as file:
        write(file)
    readers: list[Callable[[], object]] = [
        lambda: read_cloud(path, 64, 0),
        lambda: build_dataset("folder", "train", root=path),
    ]
    for read in readers:
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_cache_that_points_elsewhere_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, cache = torch.from_numpy(CLOUDS), tmp_path / "clouds.cache"
    cached_points(cache, "these files", lambda: made)
    with h5py.File(cache, "r+") as file:
        del file["points"]
        file["points"] = h5py.ExternalLink("other.h5", "/data")
    points, _ = cached_points(cache, "these files", lambda: made)
    assert points is made
    assert "is a link to another file" in caplog.text


def test_what_an_honest_file_may_do(tmp_path: Path) -> None:
    """Soft links, any filter of HDF5's own, constant arrays, the newest format: all are read."""
    constant = np.zeros((400, 2048, 3), np.float32)
    for version in ("earliest", "latest"):
        with h5py.File(tmp_path / "clouds.h5", "w", libver=version) as file:
            file["deep/real"] = CLOUDS
            file["data"] = h5py.SoftLink("deep/real")
            file.create_dataset("constant", data=constant, compression="gzip", compression_opts=9)
            file.create_dataset(
                "sums", data=CLOUDS, chunks=(3, 64, 1), compression="lzf", shuffle=True, fletcher32=True
            )
            file.create_dataset("growing", data=CLOUDS, maxshape=(None, 64, 3))
            file["name"] = np.array([b"caf\xe9", b"cup"])
            file.attrs["classes"] = ["a", "ü"]
        with open_h5(tmp_path / "clouds.h5") as file:
            for key in ("data", "sums", "growing"):
                assert np.array_equal(read_numbers(file, key), CLOUDS)
            assert np.array_equal(read_numbers(file, "data", columns=2), CLOUDS[..., :2])
            assert not read_numbers(file, "constant").any()
            assert read_text(file, "name") == ["caf\\xe9", "cup"]
            assert read_text_attribute(file, "classes") == ["a", "ü"]


def test_one_text_that_is_counted_often(tmp_path: Path) -> None:
    """A file of 3 MB whose 100,000 names are one text of 1 MB."""
    path = tmp_path / "clouds.h5"
    with h5py.File(path, "w") as file:
        names = file.create_dataset("name", (100_000,), h5py.string_dtype())
        names[0] = "x" * 1_000_000
        place = names.id.get_offset()
    content = bytearray(path.read_bytes())
    content += bytes(max(0, place + 1_600_000 - len(content)))
    content[place : place + 1_600_000] = content[place : place + 16] * 100_000
    path.write_bytes(content)
    with open_h5(path) as file, pytest.raises(DataError, match="the texts of 'name' are longer than the file"):
        read_text(file, "name")
    assert os.path.getsize(path) < 4e6


def test_a_small_file_that_expands_to_much(tmp_path: Path) -> None:
    path = tmp_path / "clouds.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.zeros((2_000_000, 3), np.float32), compression="gzip", compression_opts=9)
    with pytest.raises(
        DataError, match=r"24,000,000 bytes, but [\d,]+ are stored for it, which no cloud is compressed"
    ):
        read_cloud(path, 1, 0)


def test_whole_steps_are_coordinates(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "clouds.h5", "w") as file:
        file["data"] = np.array([[0, 512, -2048], [-32768, 1, 2047]], np.int16)
        file["data"].attrs["steps_per_unit"] = 2048
        file["other"] = np.zeros((2, 3))
        file["other"].attrs["steps_per_unit"] = 2048
    with open_h5(tmp_path / "clouds.h5") as file:
        found = read_numbers(file, "data")
        assert found.dtype == np.float32
        assert found.tolist() == [[0, 0.25, -1], [0, 1 / 2048, 2047 / 2048]]
        assert np.signbit(found).tolist() == [[False, False, True], [True, False, False]]
        with pytest.raises(DataError, match="'/other' holds float64 in steps_per_unit=2048; they have to be whole"):
            read_numbers(file, "other")
