"""Damaged, mislabelled and mistaken files: each is refused when the data set is built, by file and index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pointadapterx.datasets import build_dataset
from pointadapterx.errors import DataError
from tests.synthetic import clouds

Change = Callable[[dict[str, Any]], object]


def build(path: Path) -> None:
    build_dataset("scanobjectnn", "test", root=path.parent.parent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "main_split" / "test_objectdataset.h5"
    path.parent.mkdir()
    return path


@pytest.fixture
def content() -> dict[str, Any]:
    data, label = clouds("test", range(15), 1, 64)
    return {"data": data, "label": label}


def write(path: Path, content: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value


def set_value(key: str, where: Any, value: Any) -> Change:
    return lambda content: content[key].__setitem__(where, value)


def replace(key: str, value: Callable[[np.ndarray], Any]) -> Change:
    return lambda content: content.__setitem__(key, value(content[key]))


BAD_CONTENT: dict[str, tuple[Change, str]] = {
    "nan": (set_value("data", (3, 5, 1), np.nan), "cloud 3 holds NaN or infinite coordinates (1 of 15 clouds do)"),
    "infinite": (set_value("data", (slice(7, 9), 0, 0), np.inf), "cloud 7 holds NaN or infinite coordinates (2 of 15"),
    "too large for float32": (
        replace("data", lambda x: np.where(np.arange(15)[:, None, None] == 2, 1e300, x.astype(np.float64))),
        "cloud 2 holds NaN or infinite",
    ),
    "flat": (replace("data", lambda x: x[0]), "'data' has shape (64, 3), expected (clouds, points, 3)"),
    "normals": (replace("data", lambda x: np.tile(x, 2)), "'data' has shape (15, 64, 6), expected"),
    "transposed": (replace("data", lambda x: x.transpose(0, 2, 1)), "'data' has shape (15, 3, 64), expected"),
    "integer coordinates": (replace("data", lambda x: x.astype(np.int32)), "'data' holds int32, expected floating"),
    "no clouds": (replace("data", lambda x: x[:0]), "'data' has shape (0, 64, 3): there is no cloud"),
    "no points": (replace("data", lambda x: x[:, :0]), "'data' has shape (15, 0, 3): there is no cloud or no point"),
    "label too large": (set_value("label", 4, 15), "cloud 4 has label 15, expected 0 to 14 (1 of 15 labels"),
    "label negative": (set_value("label", 6, -1), "cloud 6 has label -1, expected 0 to 14"),
    "too few labels": (
        replace("label", lambda x: x[:-1]),
        "'label' has shape (14,), expected one label for each of 15 clouds",
    ),
    "one-hot labels": (
        replace("label", lambda x: np.eye(15, dtype=int)[x]),
        "'label' has shape (15, 15), expected one",
    ),
    "float labels": (replace("label", lambda x: x.astype(float)), "'label' holds float64, expected whole numbers"),
    "no data": (lambda content: content.pop("data"), "no data set 'data' in it; it holds label"),
    "no label": (lambda content: content.pop("label"), "no data set 'label' in it; it holds data"),
    "nothing": (lambda content: content.clear(), "no data set 'data' in it; it holds nothing"),
    "names of others": (lambda content: content.update(name=[b"a"]), "1 entries in 'name' for 15 clouds"),
}


@pytest.mark.parametrize("kind", BAD_CONTENT)
def test_bad_content(path: Path, content: dict[str, Any], kind: str) -> None:
    change, message = BAD_CONTENT[kind]
    change(content)
    write(path, content)
    with pytest.raises(DataError) as error:
        build(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BAD_FILES = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
    "web page": (
        b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "this is a web page saved under the data's name",
    ),
    "another format": (b"PK\x03\x04" + bytes(600), "this is not an HDF5 file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_not_hdf5(path: Path, kind: str) -> None:
    content, message = BAD_FILES[kind]
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        build(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(path: Path, content: dict[str, Any], share: float) -> None:
    write(path, content)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="truncated or damaged") as error:
        build(path)
    assert str(path) in str(error.value)


def test_damaged_inside(path: Path, content: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=content["data"], chunks=(5, 64, 3), compression="gzip", fletcher32=True)
        file["label"] = content["label"]
        offset = file["data"].id.get_chunk_info(1).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + 64] = bytes(64)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="truncated or damaged"):
        build(path)


def test_a_folder_in_place_of_the_file(path: Path) -> None:
    path.mkdir()
    with pytest.raises(DataError, match="files are missing"):
        build(path)
