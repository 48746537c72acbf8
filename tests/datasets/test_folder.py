"""Folders of point files and meshes, and HDF5 files without labels."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.build import build_splits
from pointadapterx.config import Config
from pointadapterx.datasets import Folder, PointClouds, build_dataset, cloud_reader
from pointadapterx.datasets import folder as folder_module
from pointadapterx.datasets.cache import cache_path
from pointadapterx.datasets.resample import fps
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.errors import ConfigError, DataError
from tests.conftest import small_config, small_pretraining

trimesh = pytest.importorskip("trimesh", exc_type=ImportError)

POINTS = np.random.default_rng(5).normal(size=(40, 3)).round(4)
SIDES = (1, 2, 4)  # of the box


def build(root: Path, **options: Any) -> PointClouds:
    return build_dataset("folder", "train", root=root, **({"stored_points": 40, "normalize": False} | options))


def write_text(path: Path, rows: np.ndarray = POINTS, delimiter: str = " ", header: str = "") -> None:
    np.savetxt(path, rows, fmt="%.4f", delimiter=delimiter, header=header, comments="")


def write_h5(path: Path, **entries: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in entries.items():
            file[name] = values


def write_box(path: Path) -> None:
    """A mesh; where trimesh is not there to write and sample it, the test skips."""
    pytest.importorskip("trimesh").creation.box(SIDES).export(path)


def mixed(root: Path) -> Path:
    """Two meshes, three point files, and what is to be left alone."""
    (root / "b" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    write_box(root / "box.obj")
    write_box(root / "b" / "box.off")
    np.save(root / "a.npy", POINTS)
    write_text(root / "b" / "deep" / "c.XYZ")
    write_text(root / "b" / "d.csv", delimiter=",", header="x,y,z")
    for junk in (".git/x.npy", "._a.npy", "box.mtl", "notes.md"):
        (root / junk).write_bytes(b"junk")
    return root


# What is read


def test_a_folder_is_unlabelled_clouds_named_by_their_paths(tmp_path: Path) -> None:
    data = build(mixed(tmp_path))
    assert isinstance(data, Folder)
    assert data.names == ["a.npy", "b/box.off", "b/d.csv", "b/deep/c.XYZ", "box.obj"]
    assert data.points.shape == (5, 40, 3)
    assert data.points.dtype == torch.float32
    assert data.points.is_contiguous()
    assert data.labels.tolist() == [0] * 5
    assert (data.classes, data.split) == (["unlabelled"], "train")
    for i in (0, 2, 3):
        assert torch.equal(data.points[i], torch.from_numpy(POINTS).float())


WRITERS: dict[str, Callable[[Path], object]] = {
    "npy": lambda path: np.save(path, np.hstack([POINTS, POINTS])),
    "npz": lambda path: np.savez(path, points=POINTS.astype(np.float32), normals=POINTS),
    "h5": lambda path: write_h5(path, data=POINTS, label=3),
    "hdf5": lambda path: write_h5(path, cloud=POINTS),
    "ply": lambda path: pytest.importorskip("trimesh").PointCloud(POINTS).export(path),
    "txt": lambda path: write_text(path, delimiter=","),
    "xyz": lambda path: write_text(path, np.hstack([POINTS, POINTS])),
    "pts": lambda path: write_text(path, header="40"),
    "csv": lambda path: write_text(path, delimiter=";", header="X;Y;Z"),
}


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_laser_scans(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laspy = pytest.importorskip("laspy")
    scan = laspy.create(point_format=3, file_version="1.2")
    scan.header.scales = [1e-4] * 3
    scan.x, scan.y, scan.z = POINTS.T
    scan.write(tmp_path / f"cloud.{suffix}")
    assert torch.allclose(build(tmp_path).points[0], torch.from_numpy(POINTS).float(), atol=1e-4)
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(DataError, match=r"is read by laspy, which is not installed; pip install 'laspy\[lazrs\]'"):
        build(tmp_path, cache_dir=tmp_path / "other")


def test_point_cloud_library_files(tmp_path: Path) -> None:
    fields = ["VERSION .7", "FIELDS x y z", "SIZE 4 4 4", "TYPE F F F", "COUNT 1 1 1", "WIDTH 40", "HEIGHT 1"]
    fields += ["VIEWPOINT 0 0 0 1 0 0 0", "POINTS 40", "DATA ascii"]
    rows = [" ".join(f"{value:.4f}" for value in row) for row in POINTS]
    (tmp_path / "cloud.pcd").write_text("\n".join(["# .PCD v.7", *fields, *rows, ""]))
    assert torch.allclose(build(tmp_path).points[0], torch.from_numpy(POINTS).float(), atol=1e-6)


@pytest.mark.parametrize("suffix", WRITERS)
def test_point_formats(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"cloud.{suffix}")
    assert torch.allclose(build(tmp_path).points[0], torch.from_numpy(POINTS).float(), atol=1e-6)


@pytest.mark.parametrize(
    ("header", "delimiter", "order"),
    [
        ("//X Y Z", " ", (0, 1, 2)),
        ("# made by hand", " ", (0, 1, 2)),
        ('"id","y","z","x"', ",", (3, 1, 2)),
        ("\ufeffx, y, z", ",", (0, 1, 2)),
        ("", "\t", (0, 1, 2)),
    ],
)
def test_headers_of_text_files(tmp_path: Path, header: str, delimiter: str, order: tuple[int, ...]) -> None:
    rows = np.zeros((40, max(order) + 1))
    rows[:, order] = POINTS
    write_text(tmp_path / "cloud.csv", rows, delimiter, header)
    assert torch.equal(build(tmp_path).points[0], torch.from_numpy(POINTS).float())


def on_box(points: torch.Tensor) -> bool:
    """Every point is on the surface of a box of sides 1, 2, 4."""
    relative = points.abs() / torch.tensor([0.5, 1.0, 2.0])
    return torch.allclose(relative.amax(dim=1), torch.ones(len(points)), atol=1e-5)


@pytest.mark.parametrize("suffix", ["off", "obj", "ply", "stl", "glb"])
def test_meshes_are_sampled_on_their_surface(tmp_path: Path, suffix: str) -> None:
    write_box(tmp_path / f"box.{suffix}")
    points = build(tmp_path, stored_points=4000).points[0]
    assert on_box(points)
    for axis, (area, half) in enumerate([(8, 0.5), (4, 1.0), (2, 2.0)]):
        share = (points[:, axis].abs() > half - 1e-5).float().mean()
        assert abs(share - area / 14) < 0.04  # of the surface, 28: five standard deviations


def test_scenes_are_merged_with_their_transforms(tmp_path: Path) -> None:

    box = trimesh.creation.box(SIDES)
    scene = trimesh.Scene([box])
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([0, 100, 0]))
    scene.export(tmp_path / "scene.glb")
    points = build(tmp_path, stored_points=400).points[0]
    far = points[:, 1] > 50
    assert 130 < far.sum() < 270
    assert on_box(torch.cat([points[~far], points[far] - torch.tensor([0.0, 100.0, 0.0])]))


def test_samples_depend_on_the_path_below_the_root_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_box(tmp_path / folder / "box.off")
    write_box(tmp_path / "two" / "same.off")
    one, two = build(tmp_path / "one").points, build(tmp_path / "two").points
    assert torch.equal(one[0], two[0])
    assert not torch.equal(two[0], two[1])


def test_several_processes_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mixed(tmp_path / "data")
    monkeypatch.setattr(folder_module, "BLOCK", 2)  # several blocks, the last one not full
    one = build(root, cache_dir=tmp_path / "one", workers=1)
    two = build(root, cache_dir=tmp_path / "two", workers=2)
    assert one.checksum == two.checksum


def test_larger_point_files_are_reduced_by_fps(tmp_path: Path) -> None:
    np.save(tmp_path / "cloud.npy", POINTS)
    expected = fps(torch.from_numpy(POINTS).float()[None], 15)
    assert torch.equal(build(tmp_path, stored_points=15).points, expected)


def test_2048_points_in_the_unit_sphere_by_default(tmp_path: Path) -> None:
    write_box(tmp_path / "box.off")
    data = build_dataset("folder", "train", root=tmp_path)
    assert data.points.shape == (1, 2048, 3)
    assert abs(float(data.points.norm(dim=2).max()) - 1) < 1e-5


def test_coordinates_of_a_map_keep_their_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "cloud.npy", POINTS + np.array([691_000.0, 5_334_000.0, 520.0]))
    expected = NormalizeUnitSphere()(torch.from_numpy(POINTS).float()[None])
    assert torch.allclose(build(tmp_path, normalize=True).points, expected, atol=1e-6)


@pytest.mark.parametrize(("up", "axis"), [("x", 0), ("y", 1), ("z", 2)])
def test_up_becomes_y_without_mirroring(tmp_path: Path, up: str, axis: int) -> None:
    np.save(tmp_path / "cloud.npy", POINTS)
    turned = build(tmp_path, up=up).points[0].double().numpy()
    rotation = np.linalg.lstsq(POINTS, turned, rcond=None)[0]
    assert np.allclose(POINTS @ rotation, turned, atol=1e-6)
    assert np.isclose(np.linalg.det(rotation), 1)
    assert np.allclose(turned[:, 1], POINTS[:, axis])


# Links and kinds


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    root = mixed(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "elsewhere" / "e.npy", POINTS)
    (root / "a-link").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "again").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "loop").symlink_to(root)
    (root / "a-copy").symlink_to(root / "b")  # sorts before b, which is read under its own name
    (root / "b" / "gone.npy").symlink_to(tmp_path / "nowhere")
    names = ["a-link/e.npy", "a.npy", "b/box.off", "b/d.csv", "b/deep/c.XYZ", "box.obj"]
    assert build(root, labels=False).names == names


def test_a_link_to_a_folder_that_a_dot_hides_is_followed(tmp_path: Path) -> None:
    (tmp_path / ".store").mkdir()
    np.save(tmp_path / ".store" / "a.npy", POINTS)
    (tmp_path / "shown").symlink_to(tmp_path / ".store")
    assert build(tmp_path).names == ["shown/a.npy"]


def test_files_left_out_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed(tmp_path)
    for name in ("b/one.gltf", "two.GLTF", "LICENSE"):
        (tmp_path / name).write_bytes(b"junk")
    for _ in range(2):  # the second time with a cache in the folder
        caplog.clear()
        with caplog.at_level(logging.INFO):
            build(tmp_path)
        assert f"{tmp_path}: 5 files of other kinds are left out (2 .gltf, " in caplog.text
        for kind in ("1 .mtl", "1 .md", "1 without suffix"):
            assert kind in caplog.text


def test_the_kinds_to_read_are_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed(tmp_path)
    (tmp_path / "README.txt").write_text("read me\nbefore use\n")
    hint = r"data\.suffixes=\[csv,npy,obj,off,xyz\] leaves out files of their kind"
    with pytest.raises(DataError, match=rf"README\.txt: cannot be read .*; {hint}"):
        build(tmp_path)
    np.save(tmp_path / "few.npy", POINTS[:3])
    (tmp_path / "README.txt").unlink()
    with pytest.raises(
        DataError, match=r"few\.npy \(3\); .* or remove them; data\.suffixes=\[csv,obj,off,xyz\] leaves"
    ):
        build(tmp_path)
    assert build(tmp_path, suffixes=["off", "xyz"]).names == ["b/box.off", "b/deep/c.XYZ"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "files that could be read are left out (2 .npy, " in warning
    assert warning.endswith("), as data.suffixes is [off, xyz]")
    with pytest.raises(DataError, match=r"in it or below \(ply\), only 2 \.npy, "):
        build(tmp_path, suffixes=["ply"])


def test_the_kinds_of_a_config(tmp_path: Path) -> None:
    np.save(tmp_path / "cloud.npy", np.tile(POINTS, (4, 1)) + np.arange(160)[:, None])
    np.save(tmp_path / "other.npy", np.tile(POINTS, (4, 1)) - np.arange(160)[:, None])
    (tmp_path / "README.txt").write_text("read me\n")
    data = {"name": "folder", "root": str(tmp_path), "stored_points": 160, "suffixes": ["npy"]}
    config = small_pretraining(tmp_path, data=data, pretrain={"probe": {"every": 0}})
    assert len(build_splits(config).train) == 1
    for suffixes, says in (
        ("[plyy]", "unknown kind 'plyy'; did you mean 'ply'? Known: asc, csv, "),
        ("[]", "needs at least 1 item"),
    ):
        with pytest.raises(ConfigError) as error:
            Config.of(config, "test", [f"data.suffixes={suffixes}"])
        assert "1 problem" in str(error.value)
        assert f"data.suffixes: {says}" in str(error.value)


# HDF5 files


def test_an_hdf5_file_is_kept_as_it_is(tmp_path: Path) -> None:
    clouds = np.random.default_rng(0).normal(size=(3, 20, 3)).astype(np.float16)
    write_h5(tmp_path / "clouds.h5", data=clouds, label=["a", "b", "c"], name=["one", "two", "three"])
    data = build_dataset("folder", "train", root=tmp_path / "clouds.h5", normalize=False)
    assert np.array_equal(data.points.numpy(), clouds.astype(np.float32))
    assert data.names == ["one", "two", "three"]
    assert data.labels.tolist() == [0, 0, 0]
    assert data.source == [tmp_path / "clouds.h5"]
    normalized = build_dataset("folder", "train", root=tmp_path / "clouds.h5")
    assert torch.allclose(normalized.points.norm(dim=2).amax(1), torch.ones(3), atol=1e-5)


def test_names_of_an_hdf5_file_are_optional(tmp_path: Path) -> None:
    write_h5(tmp_path / "clouds.h5", data=POINTS[None])
    assert build_dataset("folder", "train", root=tmp_path / "clouds.h5").names is None


@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
def test_an_hdf5_map_keeps_its_shape(tmp_path: Path, dtype: str) -> None:
    place = np.array([[[691_000.0, 5_334_000.0, 520.0]], [[1e30, 0, 0]], [[0, 0, 0]]])
    size = np.array([1, 1e20, 1e-300])[:, None, None]
    write_h5(tmp_path / "clouds.h5", data=(POINTS * size + place).astype(dtype))
    expected = NormalizeUnitSphere()(torch.from_numpy(POINTS).float()[None])[0]
    points = build_dataset("folder", "train", root=tmp_path / "clouds.h5").points
    for cloud, tolerance in zip(points, (1e-6, 1e-4, 1e-6), strict=True):
        assert torch.allclose(cloud, expected, atol=tolerance)


def test_single_spots_of_an_hdf5_file_are_refused(tmp_path: Path) -> None:
    clouds = np.stack([POINTS, np.zeros_like(POINTS), POINTS, np.ones_like(POINTS)])
    write_h5(tmp_path / "clouds.h5", data=clouds)
    for normalize in (True, False):
        with pytest.raises(DataError, match=r"clouds\.h5: all points of cloud 1 are the same \(2 of 4 clouds are such"):
            build_dataset("folder", "train", root=tmp_path / "clouds.h5", normalize=normalize)


# The cache


def refuse_reading(*_: object) -> torch.Tensor:
    raise AssertionError("the files were read though the cache is whole")


def test_the_cache_is_used_and_is_no_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(mixed(tmp_path))
    assert first.source == [tmp_path / "pointadapterx-40pts.cache"]
    monkeypatch.setattr(folder_module, "_read_clouds", refuse_reading)
    second = build(tmp_path)
    assert (second.checksum, second.names) == (first.checksum, first.names)


def replaced_in_place(root: Path) -> None:
    """Another content of the same size under the same time of change, as a copy that keeps times makes it."""
    stat = (root / "a.npy").stat()
    np.save(root / "a.npy", POINTS[::-1])
    os.utime(root / "a.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def removed(root: Path) -> None:
    (root / "box.obj").unlink()


def renamed(root: Path) -> None:
    (root / "box.obj").rename(root / "other.obj")


@pytest.mark.parametrize("change", [replaced_in_place, removed, renamed])
def test_the_cache_of_other_files_is_stale(
    tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    root = mixed(tmp_path / "data")
    first = build(root)
    change(root)
    with caplog.at_level(logging.WARNING):
        second = build(root)
    assert "the cache is stale" in caplog.text
    assert second.checksum != first.checksum
    assert second.checksum == build(root, cache_dir=tmp_path / "fresh").checksum


def test_each_number_of_points_and_place_has_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = mixed(tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        assert build(root, stored_points=30).points.shape == (5, 30, 3)
        assert build(root).points.shape == (5, 40, 3)
        centred = build(root, normalize=True)
        assert torch.allclose(centred.points, NormalizeUnitSphere()(build(root).points), atol=1e-6)
        assert torch.equal(build(root, up="x").points, build(root).points.roll(1, dims=2))
    assert caplog.text == ""


def test_another_trimesh_makes_the_cache_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build(mixed(tmp_path))
    monkeypatch.setattr(cloud_reader, "trimesh_version", lambda: "another")
    with caplog.at_level(logging.WARNING):
        build(tmp_path)
    assert "the cache is stale" in caplog.text


# What is refused


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (write("x.ply", b""), "x.ply: the file is empty (0 bytes)"),
    "LFS pointer": (
        write("x.obj", b"version https://git-lfs.github.com/spec/v1\n"),
        "x.obj: this is a Git LFS pointer",
    ),
    "web page": (write("x.txt", b"<html>404</html>"), "x.txt: this is a web page"),
    "prose": (write("x.txt", b"read me\nbefore use\n"), "x.txt: cannot be read as .txt"),
    "two columns": (write("x.xyz", b"1 2\n3 4\n"), "x.xyz: cannot be read as .xyz"),
    "broken row": (write("x.csv", b"1,2,3\n1,?,3\n"), "x.csv: cannot be read as .csv"),
    "no row": (write("x.csv", b"x,y,z\n"), "x.csv: there is no point or face in it"),
    "binary text": (write("x.pts", b"\x89\xff\xfe\x00"), "x.pts: cannot be read as .pts"),
    "NaN": (write("x.xyz", b"1 nan 3\n1 nan 3\n"), "x.xyz: all 2 points have NaN or infinite"),
    "beyond float32": (write("x.xyz", b"1 2 3\n1 1e99 3\n"), "x.xyz: coordinates beyond 1e+18, whose distances"),
    "pickled array": (lambda root: np.save(root / "x.npy", np.array([{}])), "x.npy: it holds Python objects"),
    "text array": (
        lambda root: np.save(root / "x.npy", np.full((40, 3), "a")),
        "it holds <U1 of shape (40, 3), not numbers",
    ),
    "several clouds": (
        lambda root: np.save(root / "x.npy", np.zeros((2, 40, 3))),
        "its shape (2, 40, 3) may be one organised cloud or several clouds",
    ),
    "which entry": (lambda root: np.savez(root / "x.npz", a=POINTS, b=POINTS), "its entries are a, b, expected one"),
    "not HDF5": (write("x.h5", b"nothing"), "x.h5: this is not an HDF5 file"),
    "not a mesh": (write("x.off", b"OFF\nnothing"), "x.off: cannot be read as .off"),
    "not a scene": (write("x.glb", b"nothing"), "x.glb: cannot be read as .glb"),
    "nothing in it": (write("x.obj", b"# nothing\n"), "x.obj: there is no point or face in it"),
    "no area": (write("x.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"), "its 1 faces have the area 0.0"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path: Path, kind: str) -> None:
    make, says = BAD_FILES[kind]
    mixed(tmp_path)
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as error:
        build(tmp_path)
    assert says in str(error.value)
    assert f"{tmp_path}/x." in str(error.value)
    assert f"(1 of 6 files below {tmp_path} cannot be read)" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before  # no cache


def test_points_that_are_not_finite_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.insert(POINTS, (3, 7), (np.nan, 0, np.inf), axis=0))
    for _ in range(2):  # from the files, and from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(build(tmp_path).points[1], torch.from_numpy(POINTS).float())
        assert f"{tmp_path / 'a.npy'}: 2 of 42 points have NaN or infinite coordinates and are left out" in caplog.text
        assert "and so 1 more" in caplog.text
    with pytest.raises(DataError, match=r"a\.npy: point 4 has NaN .* as 2 of 42 have; .* \(2 of 2 files"):
        build(tmp_path, nan="error")
    with pytest.raises(ConfigError, match=r"data\.nan 'drp' is unknown; did you mean 'drop'\?"):
        build(tmp_path, nan="drp")


def test_columns_of_text_files(tmp_path: Path) -> None:
    write_text(tmp_path / "cloud.csv", np.hstack([POINTS[:, ::-1], POINTS]), ",", "a,b,c,d,e,f")
    with pytest.raises(DataError, match="of which no three are known as x, y and z"):
        build(tmp_path)
    for columns in (["d", "e", "f"], [3, 4, 5]):
        assert torch.equal(build(tmp_path, columns=columns).points[0], torch.from_numpy(POINTS).float())
    flipped = build(tmp_path, columns=["a", "b", "c"])  # the cache of other columns is stale
    assert torch.equal(flipped.points[0], torch.from_numpy(POINTS[:, ::-1].copy()).float())
    config = small_pretraining(tmp_path, data={"name": "folder", "root": str(tmp_path), "columns": ["d", "e", 5]})
    assert config.data.columns == ["d", "e", 5]
    with pytest.raises(ConfigError, match=r"data\.columns: x, y and z need three different columns"):
        Config.of(config, "test", ["data.columns=[d,e]"])


def test_bad_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    mixed(tmp_path)
    for name in ("b/a.off", "x.off", "y.off"):
        (tmp_path / name).write_bytes(b"OFF\nnothing")
    with pytest.raises(DataError, match=r"b/a\.off: cannot .*\(3 of 8 files below .* cannot be read\)"):
        build(tmp_path)


def test_files_of_too_few_points_are_listed(tmp_path: Path) -> None:
    mixed(tmp_path)
    for count in range(20, 27):
        np.save(tmp_path / f"few{count}.npy", POINTS[:count])
    with pytest.raises(DataError) as error:
        build(tmp_path)
    assert "7 of 12 files have fewer than 40 different points: few20.npy (20), few21.npy (21), " in str(error.value)
    assert "few24.npy (24), and 2 more; lower data.stored_points (the smallest has 20)" in str(error.value)
    assert len(build(tmp_path, stored_points=20)) == 12


def test_repeated_points_do_not_count(tmp_path: Path) -> None:
    mixed(tmp_path)
    np.save(tmp_path / "spot.npy", np.ones((60, 3)))
    np.save(tmp_path / "repeated.npy", np.tile(POINTS[:5], (12, 1)))
    np.save(tmp_path / "padded.npy", np.concatenate([POINTS[:35], np.zeros((5, 3))]))  # 36 of 40: few enough
    for normalize in (False, True):
        with pytest.raises(DataError) as error:
            build(tmp_path, normalize=normalize)
        assert "2 of 8 files have fewer than 40 different points: repeated.npy (5), spot.npy (1);" in str(error.value)
        assert "lower data.stored_points (the smallest has 1)" in str(error.value)
    (tmp_path / "spot.npy").unlink()
    (tmp_path / "repeated.npy").unlink()
    np.save(tmp_path / "padded.npy", np.concatenate([POINTS[:34], np.zeros((6, 3))]))
    with pytest.raises(DataError, match=r"1 of 6 files .*: padded\.npy \(35\)"):
        build(tmp_path)
    assert len(build(tmp_path, stored_points=35)) == 6


@pytest.mark.parametrize("size", [1e30, 1e99, 1e-30])
def test_coordinates_of_any_size_are_normalised(tmp_path: Path, size: float) -> None:
    np.save(tmp_path / "cloud.npy", np.concatenate([POINTS, POINTS / 2]) * size)
    np.save(tmp_path / "plain.npy", np.concatenate([POINTS, POINTS / 2]))
    points = build(tmp_path, normalize=True).points
    assert torch.allclose(points[0], points[1], atol=1e-6)
    assert abs(float(points[0].norm(dim=1).max()) - 1) < 1e-6


def test_meshes_need_trimesh_and_points_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "trimesh_version", lambda: None)
    np.save(tmp_path / "a.npy", POINTS)
    assert len(build(tmp_path)) == 1
    write_box(tmp_path / "box.obj")
    with pytest.raises(
        DataError,
        match=r"box\.obj: is a mesh, and its surface is sampled by trimesh .* pip install trimesh",
    ):
        build(tmp_path)


def test_wrong_roots(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is required for data\.name=folder"):
        build_dataset("folder", "train")
    with pytest.raises(DataError, match=r"nowhere: does not exist; set data\.root"):
        build_dataset("folder", "train", root=tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"is empty, with no file in it or below; choose a folder with files \(asc csv glb .* xyz\)"
    ):
        build(tmp_path)
    (tmp_path / "notes.md").write_text("no cloud")
    for unlabelled in (lambda: build(tmp_path), lambda: Folder.require_labels(tmp_path)):
        with pytest.raises(
            (DataError, ConfigError), match=r"no point file or mesh .* xyz\), only 1 \.md; choose another"
        ):
            unlabelled()
    np.save(tmp_path / "a.npy", POINTS)
    with pytest.raises(DataError, match=r"a\.npy: data\.root is a folder, a CSV or an HDF5 file"):
        build_dataset("folder", "train", root=tmp_path / "a.npy")
    write_h5(tmp_path / "clouds.h5", points=POINTS[None])
    with pytest.raises(DataError, match=r"clouds\.h5: no data set 'data' in it; it holds points"):
        build_dataset("folder", "train", root=tmp_path / "clouds.h5")
    with pytest.raises(ConfigError, match=r"data\.stored_points=40 is for folders"):
        build(tmp_path / "clouds.h5")
    with pytest.raises(ConfigError, match=r"data\.suffixes=\['h5'\] is for folders"):
        build(tmp_path / "clouds.h5", stored_points=None, suffixes=["h5"])


def test_wrong_options(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    with pytest.raises(
        ConfigError, match=r"has no test split and no labels; put files into .*/\{train,test\}/<class>/"
    ):
        build_dataset("folder", "test", root=tmp_path)
    with pytest.raises(ConfigError, match=r"data\.up 'w' is unknown\. Known: x, y, z"):
        build(tmp_path, up="w")
    with pytest.raises(ConfigError, match=r"data\.suffixes '\.npy' is unknown; did you mean 'npy'\? Known: asc, csv, "):
        build(tmp_path, suffixes=[".npy"])
    with pytest.raises(ConfigError, match="folder has no variants"):
        build(tmp_path, variant="a")


def test_no_adaptation_to_a_folder_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    with pytest.raises(
        ConfigError, match=r"1 problem .*\n.*data\.root: .* has no labels, so it is for pre-training; put"
    ):
        Config.of(small_config(), "test", ["data.name=folder", f"data.root={tmp_path}", "head.num_classes=null"])


@pytest.mark.parametrize("name", ["folder", "imagefolder"])
def test_a_root_that_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    kind = "vit" if name == "imagefolder" else "point_mae"
    config = {**small_config("linear", kind=kind).dump(), "head": {"pools": ["cls"]}}
    config["data"] |= {"name": name, "root": None}
    with pytest.raises(ConfigError, match=rf"data\.root: data\.root is required for data\.name={name}"):
        Config.of(config, "test")
    with pytest.raises(ConfigError, match=r"data\.root: .*nowhere"):
        Config.of(config, "test", [f"data.root={tmp_path}/nowhere"])


def test_pretraining_reads_all_whatever_the_folders(tmp_path: Path) -> None:
    root = labelled(tmp_path, {"train/all": 3, "test/all": 2})
    np.save(root / "train" / "loose.npy", POINTS)
    assert len(build(root, labels=False)) == 6
    assert build(root, labels=False).classes == ["unlabelled"]


# With labels


def labelled(root: Path, counts: dict[str, int]) -> Path:
    """Clouds in folders such as ``train/cup``; what number each is can be told from its first point."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            np.save(root / folder / f"{number}.npy", POINTS + number)
    return root


FOLDERS = {"train/cup": 3, "train/bowl/deep": 2, "test/cup": 1, "test/bowl": 2}


def table(root: Path, *lines: str) -> Path:
    path = root / "clouds.csv"
    path.write_text("\n".join(["file,label,split,group", *lines]), encoding="utf-8")
    return path


def test_folders_of_classes(tmp_path: Path) -> None:
    root = labelled(tmp_path, FOLDERS)
    train = build(root)
    test = build_dataset("folder", "test", root=root, stored_points=40, normalize=False)
    assert train.classes == test.classes == ["bowl", "cup"]
    assert train.names == ["bowl/deep/0.npy", "bowl/deep/1.npy", "cup/0.npy", "cup/1.npy", "cup/2.npy"]
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 1]
    assert torch.equal(train.points[4], torch.from_numpy(POINTS + 2).float())
    assert train.groups is None
    assert build(root).checksum == train.checksum  # from the cache


def test_a_table_of_files(tmp_path: Path) -> None:
    root = labelled(tmp_path, {"scans": 6})
    path = table(
        root,
        "scans/0.npy, cup, train, a",
        "scans/1.npy,cup,train,a",
        "scans/2.npy,bowl,train,",
        "scans/3.npy,bowl,train,",
        "scans/4.npy,cup,test,",
    )
    train = build(path)
    test = build_dataset("folder", "test", root=path, stored_points=40, normalize=False)
    assert train.classes == test.classes == ["bowl", "cup"]
    assert train.labels.tolist() == [1, 1, 0, 0]
    assert train.groups is not None
    assert train.groups.tolist() == [0, 0, 1, 2]
    assert test.names == ["scans/4.npy"]
    assert torch.equal(test.points[0], torch.from_numpy(POINTS + 4).float())
    assert build(path).checksum == train.checksum  # each split has a cache of its own


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_an_adaptation_knows_the_number_of_classes(kind: str, tmp_path: Path) -> None:
    root = labelled(tmp_path, {**FOLDERS, "train/jug": 1})
    if kind == "table":
        root = table(root, "train/cup/0.npy,cup,train,", "train/jug/0.npy,jug,train,", "test/bowl/0.npy,cup,test,")
    overrides = ["data.name=folder", f"data.root={root}", "head.num_classes=null", "data.num_points=40"]
    overrides += ["backbone.num_groups=4", "backbone.group_size=4"]
    assert Config.of(small_config(), "test", overrides).head.num_classes == (3 if kind == "folders" else 2)
    stored = Config.of(small_config(), "test", [*overrides, "head.num_classes=5"])
    with pytest.raises(ConfigError, match=r"head\.num_classes=5, but folder has [23] classes"):
        build_splits(stored.replaced(data={"stored_points": 40}))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/cup": 1, "test/cup": 1}, r"train: 1 folders of classes; at least 2 are needed"),
        ({"train/cup": 1, "train/jug": 1, "test/bowl": 1}, r"test: bowl are no classes of .*train; remove or rename"),
        ({"train/cup": 1, "train/jug": 0, "test/cup": 1}, r"train: no file that is read in jug"),
        ({"train/cup": 1, "train/jug": 1, "test/cup": 1, "train": 0}, r"train/9\.npy: lies in no folder of a class"),
    ],
)
def test_wrong_folders_of_classes(counts: dict[str, int], message: str, tmp_path: Path) -> None:
    labelled(tmp_path, {name: count for name, count in counts.items() if name != "train"})
    if "train" in counts:
        np.save(tmp_path / "train" / "9.npy", POINTS)
    split = "test" if message.startswith("test:") else "train"
    with pytest.raises(DataError, match=message):
        build_dataset("folder", split, root=tmp_path, stored_points=40)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["scans/0.npy,cup,train,", "scans/1.npy,cup,train,"], r"1 classes in split train; at least 2"),
        (["scans/0.npy,cup,train,", "scans/1.npy,,train,"], r"line 3 has no label"),
        (["scans/0.npy,cup,training,"], r"line 2 has the split 'training'; use train or test"),
        (["scans/0.npy,cup,train,", "./scans/0.npy,jug,train,"], r"lines 2 and 3 name the same file"),
        (["scans/0.npy,cup,train,a", "scans/1.npy,jug,test,a"], r"line 3: group a is in training and test"),
        (["scans/7.npy,cup,train,"], r"line 2 names scans/7\.npy, which is not in"),
        (["scans/0.npy,cup,train,", "scans/1.npy,jug,train,"], r"no line of split test"),
        (["scans/0.npy,a,train,", "scans/1.npy,b,train,", "scans/2.npy,c,test,"], r"c are classes of split test alone"),
        (
            ["scans/0.npy,a,train,", "scans/1.npy,b,train,", "clouds.md,a,test,"],
            r"clouds\.md is of no kind that is read",
        ),
    ],
)
def test_wrong_tables(lines: list[str], message: str, tmp_path: Path) -> None:
    labelled(tmp_path, {"scans": 3})
    (tmp_path / "clouds.md").write_text("no cloud")
    with pytest.raises(DataError, match=message):
        build_dataset("folder", "test", root=table(tmp_path, *lines), stored_points=40)


def test_a_table_names_its_columns(tmp_path: Path) -> None:
    (tmp_path / "clouds.csv").write_text("path,class\na.npy,cup\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"clouds\.csv: has no column file, label, split; its first line names"):
        build(tmp_path / "clouds.csv")
    (tmp_path / "clouds.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"clouds\.csv: cannot be read as a table"):
        build(tmp_path / "clouds.csv")


def test_a_cache_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that cannot be written to, and a user without a home folder, as in some containers."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "access", lambda *args: False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    with pytest.raises(DataError, match=r"home directory\. Choose data\.cache_dir"):
        cache_path(tmp_path, "cache.h5", None)
