"""ModelNet40: both layouts, the cache of the text layout, and the pickled one."""

from __future__ import annotations

import logging
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.datasets import PointClouds, build_dataset
from pointadapterx.datasets import modelnet40_text as text_module
from pointadapterx.datasets.modelnet40 import MODELNET40_CLASSES
from pointadapterx.datasets.resample import fps
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.datasets.unpickle import read_pickled_arrays
from pointadapterx.errors import DataError
from tests.synthetic import write_modelnet40_dat, write_modelnet40_hdf5, write_modelnet40_text

TEXT, HDF5 = "modelnet40_normal_resampled", "modelnet40_ply_hdf5_2048"
FEW = ("airplane", "flower_pot", "xbox")


def build(root: Path, split: str = "test", **options: Any) -> PointClouds:
    return build_dataset("modelnet40", split, root=root, **options)


def write_few(root: Path, num_points: int = 8192) -> Path:
    """Three clouds a split; with 8192 points FPS is a permutation of them."""
    write_modelnet40_text(root, num_points=num_points, classes=FEW)
    return root / TEXT


def rows(points: torch.Tensor) -> list[list[float]]:
    return sorted(points.tolist())


# HDF5 layout


def test_hdf5(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_modelnet40_hdf5(tmp_path, train_per_class=2, train_files=3)
    with caplog.at_level(logging.WARNING):
        train, test = build(tmp_path, "train"), build(tmp_path)
    assert (len(train), len(test)) == (80, 40)
    assert train.points.shape == (80, 2048, 3)
    assert train.points.dtype == torch.float32
    assert train.labels.shape == (80,)
    assert train.labels.dtype == torch.int64
    assert train.labels.bincount().tolist() == [2] * 40
    assert [path.name for path in train.source] == [f"ply_data_train{i}.h5" for i in range(3)]
    assert torch.allclose(train.points.norm(dim=2).amax(1), torch.ones(80), atol=1e-5)
    assert "ModelNet40 train holds 80 clouds, published are 9843" in caplog.text
    assert "ModelNet40 test holds 40 clouds, published are 2468" in caplog.text


def test_hdf5_folder_itself_and_normalize_off(tmp_path: Path) -> None:
    write_modelnet40_hdf5(tmp_path)
    raw = build(tmp_path / HDF5, normalize=False)
    with h5py.File(tmp_path / HDF5 / "ply_data_test0.h5") as file:
        assert np.array_equal(file["data"][()], raw.points.numpy())
    assert torch.allclose(NormalizeUnitSphere()(raw.points), build(tmp_path).points)


def test_hdf5_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_modelnet40_hdf5(tmp_path, num_points=16, train_files=12)
    names = [path.name for path in build(tmp_path, "train").source]
    assert names == [f"ply_data_train{i}.h5" for i in range(12)]


def test_hdf5_errors(tmp_path: Path) -> None:
    write_modelnet40_hdf5(tmp_path, num_points=16, train_files=3)
    folder = tmp_path / HDF5
    (folder / "ply_data_train1.h5").rename(tmp_path / "away.h5")
    with pytest.raises(DataError, match=r"ply_data_train1\.h5 is missing, though ply_data_train2\.h5 is there"):
        build(tmp_path, "train")
    with h5py.File(folder / "ply_data_train1.h5", "w") as file:
        file["data"], file["label"] = np.zeros((4, 8, 3), np.float32), np.zeros((4, 1), np.uint8)
    with pytest.raises(DataError, match=r"ply_data_train1\.h5: 8 points a cloud, but ply_data_train0\.h5 has 16"):
        build(tmp_path, "train")
    (folder / "shape_names.txt").write_text("\n".join(reversed(MODELNET40_CLASSES)))
    with pytest.raises(DataError, match=r"shape_names\.txt: class 0 is 'xbox', expected 'airplane'"):
        build(tmp_path)


# Text layout


def test_text_is_sampled_by_fps_and_normalized(tmp_path: Path) -> None:
    folder = write_few(tmp_path, num_points=10_000)
    data = build(tmp_path)
    assert data.points.shape == (3, 8192, 3)
    assert [data.classes[i] for i in data.labels] == list(FEW)
    assert data.names == (folder / "modelnet40_test.txt").read_text().split()
    raw = np.stack([np.loadtxt(folder / c / f"{n}.txt", delimiter=",") for c, n in zip(FEW, data.names, strict=True)])
    expected = fps(torch.from_numpy(raw[:, :, :3]).float(), 8192)
    assert torch.equal(build(tmp_path, normalize=False).points, expected)
    assert torch.allclose(data.points, NormalizeUnitSphere()(expected))


def test_text_is_parsed_the_same_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_few(tmp_path)
    monkeypatch.setattr(text_module, "BLOCK", 2)  # several blocks, the last one not full
    one = build(tmp_path, cache_dir=tmp_path / "one", workers=1)
    two = build(tmp_path, cache_dir=tmp_path / "two", workers=2)
    assert torch.equal(one.points, two.points)


def refuse_parsing(*_: object) -> torch.Tensor:
    raise AssertionError("the text files were parsed though the cache is whole")


def test_the_cache_is_used_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_few(tmp_path)
    first = build(tmp_path)
    cache = folder / "modelnet40_test_8192pts_fps.h5"
    assert first.source == [cache]
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []  # no temporary file is left
    monkeypatch.setattr(text_module, "_parse_all", refuse_parsing)
    assert build(tmp_path).checksum == first.checksum


def damage_content(cache: Path) -> None:
    with h5py.File(cache, "r+") as file:
        file["points"][1, 5, 0] += 1e-3


def truncate(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:5000])


def drop_checksum(cache: Path) -> None:
    with h5py.File(cache, "r+") as file:
        del file.attrs["content"]


def wrong_kind(cache: Path) -> None:
    cache.unlink()
    with h5py.File(cache, "w") as file:
        file.create_group("points")
        file.attrs["made_from"] = "x"


def flip_a_byte(cache: Path) -> None:
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_content, truncate, drop_checksum, wrong_kind, flip_a_byte])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_few(tmp_path)
    first = build(tmp_path)
    damage(folder / "modelnet40_test_8192pts_fps.h5")
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path).checksum == first.checksum
    assert "rebuilding it" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build(tmp_path)
    assert "rebuilding it" not in caplog.text


def test_a_stale_cache_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_few(tmp_path)
    first = build(tmp_path)
    names = first.names or []
    path = folder / FEW[0] / f"{names[0]}.txt"
    path.write_text(path.read_text().replace("0.1", "0.2"))  # of the same size
    with caplog.at_level(logging.WARNING):
        second = build(tmp_path)
    assert "the cache is stale" in caplog.text
    assert not torch.equal(second.points[0], first.points[0])
    assert torch.equal(second.points[1:], first.points[1:])


def test_a_shorter_list_is_not_read_from_the_old_cache(tmp_path: Path) -> None:
    folder = write_few(tmp_path)
    build(tmp_path)
    names = (folder / "modelnet40_test.txt").read_text().split()
    (folder / "modelnet40_test.txt").write_text("\n".join(names[1:]))
    assert build(tmp_path).names == names[1:]


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_few(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        data = build(tmp_path, cache_dir=tmp_path / "file" / "cache")
    assert len(data) == 3
    assert "no cache written" in caplog.text


def test_read_only_data_is_cached_for_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_few(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    data = build(tmp_path)
    assert data.source[0].parent == tmp_path / "home" / "pointadapterx"
    assert data.source[0].is_file()
    assert not (folder / "modelnet40_test_8192pts_fps.h5").exists()


def set_list(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "modelnet40_test.txt").write_text(text)

    return change


def set_cloud(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        name = (folder / "modelnet40_test.txt").read_text().split()[1]
        (folder / FEW[1] / f"{name}.txt").write_text(text)

    return change


def rename_class(folder: Path) -> None:
    path = folder / "modelnet40_shape_names.txt"
    path.write_text(path.read_text().replace("bench", "bank"))


def remove_cloud(folder: Path) -> None:
    next((folder / "xbox").iterdir()).unlink()
    next((folder / "xbox").iterdir()).unlink()


ROW = "0.1,0.2,0.3,0,0,1\n"
BAD_TEXT: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (set_cloud(ROW * 9000), "9000 points, expected as many as in the first file (8192)"),
    "not numbers": (set_cloud(ROW * 3 + "0.1,?,0.3,0,0,1\n"), "rows must be x,y,z,nx,ny,nz, but"),
    "two columns": (set_cloud("0.1,0.2\n" * 9), "rows must be x,y,z,nx,ny,nz, but"),
    "nan": (set_cloud(ROW * 6 + "nan,0,0,0,0,0\n" + ROW), "row 7 holds NaN or infinite coordinates"),
    "empty cloud": (set_cloud(""), "the file is empty (0 bytes)"),
    "web page": (set_cloud("<html>404</html>"), "this is a web page"),
    "unknown class": (set_list("airplane_0001\ncastle_0002\n"), "entry 2 is 'castle_0002', expected <class>_<number>"),
    "empty list": (set_list("\n"), "no cloud is listed in it"),
    "unlisted": (set_list("airplane_9999\n"), "1 of the 1 files it lists are missing, the first is"),
    "missing clouds": (remove_cloud, "1 of the 3 files it lists are missing, the first is"),
    "other classes": (rename_class, "class 3 is 'bank', expected 'bench'"),
}


@pytest.mark.parametrize("kind", BAD_TEXT)
def test_bad_text_files(tmp_path: Path, kind: str) -> None:
    folder = write_few(tmp_path)
    change, message = BAD_TEXT[kind]
    change(folder)
    with pytest.raises(DataError) as error:
        build(tmp_path)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_clouds_of_too_few_points(tmp_path: Path) -> None:
    write_few(tmp_path, num_points=1024)
    with pytest.raises(DataError, match=r"1024 points, .* 8192 at least"):
        build(tmp_path)


# Pickled cache


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_dat(tmp_path: Path, protocol: int) -> None:
    write_modelnet40_dat(tmp_path, num_points=64, protocol=protocol)
    data = build(tmp_path, "train", normalize=False)
    path = tmp_path / TEXT / "modelnet40_train_8192pts_fps.dat"
    assert data.source == [path]
    with path.open("rb") as file:
        points, labels = pickle.load(file)  # written by this test
    assert np.array_equal(np.stack(points)[:, :, :3], data.points.numpy())
    assert np.concatenate(labels).tolist() == data.labels.tolist()


def test_dat_of_another_numpy(tmp_path: Path) -> None:
    """numpy 1 and 2 name the same function differently."""
    write_modelnet40_dat(tmp_path, num_points=64, protocol=2)
    path = tmp_path / TEXT / "modelnet40_test_8192pts_fps.dat"
    expected = build(tmp_path).points
    content = path.read_bytes()
    path.write_bytes(content.replace(b"numpy._core.", b"numpy.core."))
    assert path.read_bytes() != content
    assert torch.equal(build(tmp_path).points, expected)


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("protocol", range(6))
def test_dat_that_asks_for_code_is_refused_before_it_runs(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "x.dat", tmp_path / "it ran"
    path.write_bytes(pickle.dumps([[np.zeros((4, 6))], Call(touch, str(mark))], protocol=protocol))
    with pytest.raises(DataError) as error:
        read_pickled_arrays(path)
    assert not mark.exists()
    assert f"{path}: refused, the pickle asks for " in str(error.value)
    assert ".touch, which is no part of an array" in str(error.value)
    pickle.loads(path.read_bytes())  # the unrestricted reader does run it
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"Pthing\n.", "a persistent object"),
        (pickle.dumps({1, 2}, protocol=2), ".set"),
        (pickle.dumps({1, 2}, protocol=4), "a set"),
        (pickle.dumps([{}]), "a dictionary"),
        (pickle.dumps(Path("x")), "pathlib"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_pickled_arrays(path)
    assert name in str(error.value)


def test_codecs_other_than_latin1_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(b"c_codecs\nencode\n(Vab\nVrot13\ntR.")
    with pytest.raises(DataError, match="refused, the pickle asks for codec 'rot13'"):
        read_pickled_arrays(path)


def _frames(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02i8I0\nI1\ntR"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # Flags of a dtype that make numpy read raw bytes as pointers to objects.
        (_frames(DTYPE, b"(I3\nU\x01<NNNI-1\nI-1\nI63\ntb"), "refused, the pickle asks for numpy.dtype of the state"),
        (_frames(DTYPE, b"(I3\nU\x01<N(U\x01at}I8\nI8\nI0\ntb"), "refused, the pickle asks for a dictionary"),
        (_frames(b"cnumpy\ndtype\n(U\x01OI0\nI1\ntR"), "refused, the pickle asks for numpy.dtype('O')"),
        (_frames(b"cnumpy\ndtype\n(U\x08V9999999I0\nI1\ntR"), "refused, the pickle asks for numpy.dtype('V9999999')"),
        (_frames(b"cnumpy\ndtype\n(U\x05i8,f4I0\nI1\ntR"), "refused, the pickle asks for numpy.dtype('i8,f4')"),
        (_frames(b"cnumpy\nndarray\n(J\x00\x00\x00\x7ftR"), "refused, the pickle asks for a call of something else"),
        (_frames(b"]}b"), "refused, the pickle asks for a dictionary"),
        (_frames(b"]Nb"), "refused, the pickle asks for a state of list"),
        (_frames(b"c_codecs\nencode\nNb"), "refused, the pickle asks for a state of _Function"),
        # Sizes that are only declared.
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "truncated or damaged"),
        (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "truncated or damaged"),
        (b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b"]", "truncated or damaged"),
        (_frames(b"]" * 100, b"a" * 99), "more than 16 deep"),
        (
            _frames(RECONSTRUCT, b"(I1\n(J\xff\xff\xff\x7ft", DTYPE, b"I00\nU\x00tb"),
            "needs 17179869176 bytes, and 0 are there",
        ),
        (_frames(RECONSTRUCT), "without its numbers"),
    ],
)
def test_dat_cannot_corrupt_memory_or_exhaust_it(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_pickled_arrays(path)
    assert reason in str(error.value)


DOUBLED = b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60))  # each list twice in the next: 2**60 in the last
NESTED = b"]q\x00" + DOUBLED


@pytest.mark.parametrize(
    "content",
    [
        NESTED + b"cnumpy\ndtype\nh\x3c\x85R",
        NESTED + b"cnumpy\ndtype\nU\x02f4\x85Rh\x3cb",
        NESTED + b"c_codecs\nencode\nVa\nh\x3c\x86R",
        NESTED + b"cnumpy.core.numeric\n_frombuffer\n(U\x04abcdcnumpy\ndtype\nU\x02f4\x85Rh\x3cU\x01CtR",
        NESTED + b"h\x3ch\x3c\x93",
        b"c_codecs\nencode\nq\x00V" + b"a" * 10_000 + b"\nVlatin1\n\x86q\x01](" + b"h\x00h\x01R" * 5_000 + b"e",
    ],
    ids=["dtype", "state", "codec", "shape", "name", "one text often"],
)
def test_dat_that_names_one_thing_often_takes_little(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(_frames(content))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"refused|an array of shape|more bytes than it has"):
            read_pickled_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_large_memo_index_and_a_list_in_itself_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(_frames(b"]r\xff\xff\xff\xffj\xff\xff\xff\xffa"))
    content = read_pickled_arrays(path)
    assert content[0] is content


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_are_read_exactly(tmp_path: Path, protocol: int) -> None:
    arrays = [
        np.arange(12, dtype=">f4").reshape(3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[True, False]]),
        np.array(3, np.uint8),
        np.zeros((0, 3), np.int16),
    ]
    path = tmp_path / "x.dat"
    path.write_bytes(pickle.dumps([arrays, (1, "text", None, 2.5, -(10**6))], protocol=protocol))
    found, rest = read_pickled_arrays(path)
    for array, expected in zip(found, arrays, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    assert rest == (1, "text", None, 2.5, -(10**6))


ARRAY, LABEL = np.zeros((8, 6), np.float32), np.array([1], np.int32)
BAD_DAT: dict[str, tuple[Any, str]] = {
    "one list": ([ARRAY], "expected a list of two lists"),
    "a mapping": ({"points": [ARRAY]}, "refused, the pickle asks for a dictionary"),
    "an array": (ARRAY, "expected a list of two lists"),
    "too few labels": ([[ARRAY, ARRAY], [LABEL]], "2 clouds and 1 labels"),
    "nothing": ([[], []], "0 clouds and 0 labels"),
    "ragged": ([[ARRAY, ARRAY[:5]], [LABEL, LABEL]], "cloud 1 is (5, 6), expected an array of shape"),
    "a list as cloud": ([[ARRAY, [1.0]], [LABEL, LABEL]], "cloud 1 is list, expected an array"),
    "flat clouds": ([[ARRAY[0]], [LABEL]], "cloud 0 is (6,), expected an array"),
    "objects": ([[ARRAY.astype(object)], [LABEL]], "refused, the pickle asks for numpy.dtype('O8')"),
    "one cloud many times": ([[ARRAY] * 500, [LABEL] * 500], "500 clouds of 192 bytes in a file of"),
    "nan": ([[ARRAY, ARRAY * np.nan], [LABEL, LABEL]], "cloud 1 holds NaN or infinite"),
    "label out of range": ([[ARRAY], [LABEL * 40]], "cloud 0 has label 40, expected 0 to 39"),
    "float label": ([[ARRAY], [LABEL * 1.5]], "label 0 is array([1.5]), expected an array of one whole number"),
    "two labels": ([[ARRAY], [np.array([1, 2])]], "label 0 is array([1, 2]), expected an array of one"),
}


@pytest.mark.parametrize("kind", BAD_DAT)
def test_bad_dat(tmp_path: Path, kind: str) -> None:
    content, message = BAD_DAT[kind]
    path = tmp_path / TEXT / "modelnet40_test_8192pts_fps.dat"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError) as error:
        build(tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_dat(tmp_path: Path, share: float) -> None:
    write_modelnet40_dat(tmp_path, num_points=64)
    path = tmp_path / TEXT / "modelnet40_test_8192pts_fps.dat"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"truncated or damaged|empty \(0 bytes\)"):
        build(tmp_path)


# Which layout


def test_layouts_are_found_or_chosen(tmp_path: Path) -> None:
    write_modelnet40_hdf5(tmp_path)
    assert build(tmp_path).source[0].parent.name == HDF5
    write_modelnet40_dat(tmp_path, num_points=64)
    assert build(tmp_path).source[0].parent.name == TEXT
    assert build(tmp_path, variant="ply_hdf5_2048").source[0].parent.name == HDF5
    assert build(tmp_path, variant="normal_resampled").source[0].parent.name == TEXT


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (None, ["modelnet40_test.txt", "modelnet40_test_8192pts_fps.dat", "ply_data_test0.h5", "shape_names.txt"]),
        ("normal_resampled", ["modelnet40_shape_names.txt", "<class>/<class>_<number>.txt"]),
        ("ply_hdf5_2048", ["ply_data_test0.h5"]),
    ],
)
def test_missing_files_are_one_message_with_a_way_out(tmp_path: Path, variant: str | None, expected: list[str]) -> None:
    with pytest.raises(DataError) as error:
        build(tmp_path, variant=variant)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for name in expected:
        assert f"{name} (missing)" in message
    assert "https://modelnet.cs.princeton.edu/" in message
    assert "make demo" in message
    assert ("ply_data" in message) == (variant != "normal_resampled")


def test_a_layout_without_this_split(tmp_path: Path) -> None:
    folder = write_few(tmp_path)
    (folder / "modelnet40_test.txt").unlink()
    with pytest.raises(DataError, match=r"shape_names\.txt \(found\), .*modelnet40_test\.txt \(missing\)"):
        build(tmp_path)
