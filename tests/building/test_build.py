"""Data sets of tiny packages: what is written, that it repeats itself, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointadapterx.building import sources
from pointadapterx.building.build import build
from pointadapterx.building.ldraw import LABELS, UNLABELLED, Library, part_numbers, with_normals
from pointadapterx.building.lists import Model, parts_of, read_list
from pointadapterx.building.meshes import read_obj, read_vrml
from pointadapterx.building.recipes import RECIPES
from pointadapterx.building.sampling import NEGATIVE_ZERO, hilbert_order, sample
from pointadapterx.building.writing import hash_of
from pointadapterx.commands.main import main
from pointadapterx.datasets import build_dataset
from pointadapterx.datasets.ldraw_parts import KINDS_OF_PARTS
from pointadapterx.errors import CheckpointError, DataError
from tests.building.debs import TETRAHEDRON, deb, furniture, save, small_home


def test_a_set_is_written_repeats_itself_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = furniture()
    file = save(tmp_path, small_home(monkeypatch, content), content)
    for output in ("one", "two"):
        built = build("home", tmp_path / output, packages=[file], say=print)
        assert built.counts == {"train": 2, "test": 2}
    for split in ("train", "test"):
        one, two = (tmp_path / output / f"{split}.h5" for output in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        data = build_dataset("home", split, root=tmp_path / "one")
        assert [data.classes[label] for label in data.labels] == ["chair", "bed"]
        assert data.groups is not None
        assert len(data.groups.unique()) == 2
        assert (data.points.norm(dim=2).amax(1) - 1).abs().max() < 2e-3
        with h5py.File(one) as h5:
            assert h5["author"][0].decode() == "Scopia Visual Interfaces Systems, s.l."
            assert b"CC BY 3.0" in h5["licence"][0]
            assert b"CC BY 3.0" in h5.attrs["licence"]
    assert "Chair_1, Chair_2" in (tmp_path / "one" / "ATTRIBUTION.txt").read_text()
    stated = json.loads((tmp_path / "one" / "checksums.json").read_text())
    assert stated["package"]["sha256"] == RECIPES["home"].package.sha256
    assert stated["files"].keys() == {"train.h5", "test.h5"}


def test_the_proportions_are_those_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = furniture(["chair_1"])
    package = small_home(monkeypatch, content)
    file = save(tmp_path, package, content)
    ((_, cloud),) = sources.home(file, [Model("train", "chair", "0", "Scopia/chair_1")])
    extent = np.ptp(np.where(cloud.points == NEGATIVE_ZERO, 0, cloud.points.astype(float)), axis=0)
    assert np.allclose(extent / extent[0], [1, 2, 3], atol=0.15)  # width 1, height 2, depth 3


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    content = furniture()
    file = save(tmp_path, small_home(monkeypatch, content), content)
    arguments = ["data", "build", "home", str(tmp_path / "home"), "--packages", str(file)]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "the content of train.h5, test.h5 is not the known one" in printed
    assert "CC BY 3.0 US" in printed
    stated = json.loads((tmp_path / "home" / "checksums.json").read_text())["files"]
    known = {name.removesuffix(".h5"): entry["content"] for name, entry in stated.items()}
    RECIPES["home"].known.update(known)  # type: ignore[attr-defined]
    assert main([*arguments[:3], str(tmp_path / "again"), *arguments[4:]]) == 0
    assert "the content is the known one" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "is there already; remove it, or choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hom", "x"], "unknown name 'hom'; did you mean 'home'?"),
        (["home", "x", "--mirror", "ftp://example.org"], "is no address that begins with https:// or http://"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "build", *arguments])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (furniture(["chair_1", "chair_2", "bed_1"]), "1 models are not in it, the first is Scopia/bed_2"),
        (deb({"usr/share/sweethome3d/furniture/Scopia.sh3f": b"PK"}), "Scopia cannot be read (File is not a zip file)"),
    ],
)
def test_a_package_of_other_content_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    file = save(tmp_path / "debs", small_home(monkeypatch, content), content)
    with pytest.raises(DataError) as error:
        build("home", tmp_path / "home", packages=[file], say=print)
    assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["debs"]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    content = furniture()
    file = save(tmp_path / "debs", small_home(monkeypatch, content), content)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))  # which is less than an HDF5 file has
    try:
        assert main(["data", "build", "home", str(tmp_path / "home"), "--packages", str(file)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    printed = capfd.readouterr().err
    assert (
        printed
        == f"error: {tmp_path / 'home'}: could not be written (File too large); free space or choose another folder\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["debs"]


def test_a_folder_that_is_not_empty_is_left(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(CheckpointError, match="is there already"):
        build("home", tmp_path, packages=[tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_meshes_are_read_in_the_order_of_the_file() -> None:
    triangles = read_obj(TETRAHEDRON.encode())
    assert triangles[:, 0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert triangles[1, 2].tolist() == [0, 0, 3]  # -1 is the last vertex
    square = "coordIndex [0,1,2,3,-1, 0,2,9,-1] } Coordinate { point [0 0 0, 1 0 0, 1 1 0, 0 1 0] }"
    both = read_vrml(f"Shape {{ geometry IndexedFaceSet {{ {square} }} }}".encode())
    assert both.tolist() == [[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]]


@pytest.mark.parametrize(
    "data", [np.array([[0, 1, NEGATIVE_ZERO]], np.int16), np.array([[0.0, 1.0, -0.0]], np.float16)]
)
def test_the_hash_of_a_content_does_not_see_the_sign_of_zero(data: np.ndarray) -> None:
    other = data[:, ::-1].copy()
    other[0, 1] = 1
    assert hash_of(data, {}) == hash_of(other, {})
    assert hash_of(data, {}) != hash_of(data[:, [1, 0, 2]], {})


def test_electronics_are_read_by_folder_and_name(tmp_path: Path) -> None:
    text = b"IndexedFaceSet { coordIndex [0,1,2,-1] coord Coordinate { point [0 0 0, 1 0 0, 1 0 4] } }"
    path = tmp_path / "a.deb"
    path.write_bytes(deb({"usr/share/kicad/3dmodels/Display.3dshapes/A.1.wrl": text}))
    ((name, cloud),) = sources.electronics(path, [Model("train", "display", "0", "Display/A.1")])
    assert name == "Display/A.1"
    assert cloud.points.dtype == np.int16
    assert np.ptp(cloud.points, axis=0).argmax() == 1  # z is up in the package, y here


PARTS = {
    "parts/1.dat": "0 Brick\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 stud.dat\n1 16 9 0 0 1 0 0 0 1 0 0 0 1 s\\1S01.dat\n",
    "parts/s/1s01.dat": "0 ~Brick\n4 16 0 0 0 1 0 0 1 0 1 0 0 1\n3 16 0 0 0 1 0 0 0 1 1\n",
    "p/stud.dat": "0 Stud\n1 16 0 0 0 2 0 0 0 2 0 0 0 2 cyl.dat\n",
    "p/cyl.dat": "0 Cylinder 1.0\n3 16 0 0 0 1 0 0 0 0 1\n",
    "parts/cyl.dat": "0 no primitive\n",
}


def test_a_part_is_put_together_and_labelled(tmp_path: Path) -> None:
    path = tmp_path / "ldraw.deb"
    path.write_bytes(deb({f"usr/share/ldraw/{name}": text.encode() for name, text in PARTS.items()}))
    library = Library(path)
    triangles, labels = library.read("1.dat")
    assert [LABELS[label] if label != UNLABELLED else "" for label in labels] == ["stud", "", "", ""]
    assert triangles[0].tolist() == [[0, 0, 0], [2, 0, 0], [0, 0, 2]]
    assert triangles[1, 0].tolist() == [9, 0, 0]
    assert [LABELS[label] for label in with_normals(triangles, labels)] == ["stud", "flat", "flat", "inclined"]
    with pytest.raises(DataError, match=r"2\.dat is not in it"):
        library.read("2.dat")
    points, chosen = sample(triangles, "1.dat", 64)
    assert points.shape == (64, 3)
    assert np.array_equal(points, sample(triangles, "1.dat", 64)[0])
    assert set(chosen) <= {0, 1, 2, 3}


def test_labels_that_a_category_has_not() -> None:
    kinds = [(name, kind) for name, parts in KINDS_OF_PARTS.items() for kind in parts]
    assert [kinds[number][1] for number in part_numbers("wheel")] == ["flat", "inclined", *["curved"] * 5]
    wing = [kinds[number][1] for number in part_numbers("wing")]
    assert wing == ["flat", "inclined", "inclined", "stud", "tube", "inclined", "inclined"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("home", {"train": 348, "test": 142}),
        ("ldraw20", {"train": 1662, "test": 531, "pretrain": 4537}),
        ("ldraw_parts", {"train": 1629, "test": 488}),
        ("electronics", {"train": 2451, "test": 916}),
    ],
)
def test_lists(name: str, counts: dict[str, int]) -> None:
    parts = parts_of(read_list(name))
    assert {part: len(models) for part, models in parts.items()} == counts
    for models in parts.values():
        assert len({model.name for model in models}) == len(models)
    train, test = ({model.group or model.name for model in parts[part]} for part in ("train", "test"))
    assert not train & test
    labels = {model.label for part in ("train", "test") for model in parts[part]}
    assert labels == set(RECIPES[name].classes or labels)
    assert set(RECIPES[name].known) == set(counts)


def test_the_curve_visits_every_cell_of_a_grid_by_single_steps() -> None:
    grid = (np.indices((8, 8, 8)).reshape(3, -1).T + 0.5) / 4 - 1
    walk = grid[hilbert_order(grid, bits=3)]
    assert len(np.unique(walk, axis=0)) == 512
    assert np.allclose(np.abs(np.diff(walk, axis=0)).sum(1), 0.25)
