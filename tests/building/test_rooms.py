"""Rooms of a tiny package: where points lie, what is in whose way, that masks and boxes agree, and repetition."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pointadapterx.building import build as building
from pointadapterx.building import composed, rendering, scanning
from pointadapterx.building.build import build, models_of
from pointadapterx.building.furniture import CEILING, FLOOR, LABEL_OF, LABELS, WALL, Piece, furniture
from pointadapterx.building.lists import Model, read_list
from pointadapterx.building.packages import Package, downloads_folder
from pointadapterx.building.recipes import RECIPES
from pointadapterx.building.rooms import PARTS, Room, compose
from pointadapterx.datasets import build_dataset
from tests.building.debs import LIBRARY, deb, save
from tests.mechanisms import exhaustive

SIZES = {
    "door": (90, 200, 10),
    "window": (100, 120, 10),
    "table": (140, 75, 90),
    "chair": (45, 90, 45),
    "sofa": (180, 80, 90),
    "bed": (140, 90, 200),
    "cabinet": (80, 90, 50),
    "shelf": (90, 180, 40),
    "lamp": (40, 30, 40),
    "sanitary": (60, 80, 50),
    "appliance": (60, 85, 60),
    "plant": (30, 60, 30),
    "tableware": (12, 10, 12),
    "bottle": (8, 25, 8),
    "clothes": (30, 15, 30),
}
"""Centimetres of a model of each class, all of them boxes."""
ELEVATIONS = {"window": 90, "lamp": 220}
CUBE = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
FACES = ("f 1 2 4 3", "f 5 6 8 7", "f 1 2 6 5", "f 3 4 8 7", "usemtl back", "f 1 3 7 5", "f 2 4 8 6")
COLOURS = {"train": "0.8 0.2 0.2", "test": "0.2 0.2 0.8"}
NOISE = 4 * scanning.NOISE + 5  # and rounding, in tenths of a millimetre
COUNTS = {"rooms": {"train": 5, "test": 1}, "views": {"train": 4, "test": 1}}


def package() -> bytes:
    """A box of each class for each part, red ones to train on, blue ones to test."""
    catalogue, content = "id=SweetHome3D#Models\n", io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, model in enumerate(models(), 1):
            name = model.name.removeprefix("Scopia/")
            keys = dict(zip(("width", "height", "depth"), SIZES[model.label], strict=True))
            entry = {"id": f"Scopia#{name}", "name": name, "model": f"/m/{name}.obj", "creator": "Ada", **keys}
            entry["elevation"] = ELEVATIONS.get(model.label, 0)
            catalogue += "".join(f"{key}#{number}={value}\n" for key, value in entry.items())
            obj = f"mtllib {model.part}.mtl\n{CUBE}usemtl front\n" + "\n".join(FACES)
            archive.writestr(f"m/{name}.obj", obj)
        for part, colour in COLOURS.items():
            archive.writestr(f"m/{part}.mtl", f"newmtl front\nKd {colour}\nnewmtl back\nKd {colour}\n")
        archive.writestr("PluginFurnitureCatalog.properties", catalogue.encode("latin1"))
    return deb({LIBRARY: content.getvalue()})


def models() -> list[Model]:
    return [Model(part, kind, "0", f"Scopia/{kind}_{part}") for part in PARTS for kind in SIZES]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("debs"), RECIPES["rooms"].package, package())


@pytest.fixture(scope="module")
def pieces(file: Path) -> dict[str, list[Piece]]:
    found = dict(furniture(file, models()))
    return {part: [p for m in models() if m.part == part and isinstance(p := found[m.name], Piece)] for part in PARTS}


@pytest.fixture(scope="module")
def rooms(pieces: dict[str, list[Piece]]) -> list[Room]:
    return [compose("train", number, pieces["train"]) for number in range(15)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, file: Path) -> Package:
    """Lets ``build("rooms", ...)`` and ``build("views", ...)`` take that package, and make a few rooms."""
    content = file.read_bytes()
    checked = dataclasses.replace(
        RECIPES["rooms"].package, size=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    for name in ("rooms", "views"):
        recipe = dataclasses.replace(RECIPES[name], package=checked, known={}, counts=COUNTS[name])
        monkeypatch.setitem(RECIPES, name, recipe)
    monkeypatch.setattr(building, "read_list", lambda name: [*models(), Model("train", "tool", "0", "Scopia/none")])
    return checked


def test_points_lie_on_the_surface_that_they_are_labelled_as(rooms: list[Room]) -> None:
    for room in rooms[:5]:
        scan = scanning.scan(room, "train")
        points, sides = scan.points.astype(int) * 10, np.array([room.width, room.height, room.depth])
        for label, axes, ends in ((CEILING, [1], [1]), (FLOOR, [1], [0]), (WALL, [0, 2], [0, 1])):
            own = points[scan.labels == label]
            away = np.min([np.abs(own[:, axis] - end * sides[axis]) for axis in axes for end in ends], axis=0)
            assert len(own) > 1000
            assert away.max() <= NOISE
        assert (scan.instances[scan.labels <= WALL] == 0).all()
        for number, placed in enumerate(room.placed, 1):
            own = points[scan.instances == number]
            low, high = np.array(placed.box.low), np.array(placed.box.high)
            assert (np.minimum(np.abs(own - low), np.abs(own - high)).min(1) <= NOISE).all()
            assert ((own >= low - NOISE) & (own <= high + NOISE)).all()
            assert set(scan.labels[scan.instances == number]) <= {placed.piece.label}


def test_furniture_is_in_no_others_way(rooms: list[Room]) -> None:
    for room in rooms:
        openings = [placed for placed in room.placed if placed.piece.kind in ("door", "window")]
        assert len(openings) == len(room.holes)
        solid = room.placed[len(openings) :]
        assert len(solid) > 3
        for one, other in combinations(solid, 2):
            at_table = {one.piece.kind, other.piece.kind} == {"table", "chair"}
            assert at_table or not one.box.meets(other.box)
        for placed in solid:
            assert min(placed.box.low) >= 0
            assert (np.array(placed.box.high) <= [room.width, room.height, room.depth]).all()


def test_things_stand_on_tables_and_lamps_hang_from_ceilings(rooms: list[Room]) -> None:
    heights = {(placed.piece.kind, placed.at[1]) for room in rooms for placed in room.placed}
    assert {height for kind, height in heights if kind == "tableware"} <= {7500, 8500, 9000}  # of what carries them
    assert ("tableware", 7500) in heights
    for room in rooms:
        assert all(p.box.high[1] == room.height for p in room.placed if p.piece.kind == "lamp")


def test_a_wall_has_no_points_in_its_openings(rooms: list[Room]) -> None:
    room = rooms[0]
    points, _, labels, instances = scanning.surfaces(room, np.random.default_rng(0))
    walls = points[labels == WALL]
    for number, hole in enumerate(room.holes, 1):
        opening = points[instances == number]
        inside = ((walls > opening.min(0)) & (walls < opening.max(0))).all(1)
        assert opening.min(0)[1] == hole.low
        assert not inside.any()


def test_what_is_behind_is_not_seen() -> None:
    far = np.array([20_000, 3_000, -1_000])
    points = np.stack([far, far * 2, far + np.array([900, 0, 0]), -far, far // 2 * [0, 1, 1]])
    assert scanning.visible(points).tolist() == [True, False, True, True, True]


def test_the_first_triangle_of_each_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "WIDTH", 24)
    monkeypatch.setattr(rendering, "HEIGHT", 18)
    monkeypatch.setattr(rendering, "AT_ONCE", 100)
    draws = np.random.default_rng(0)
    triangles = draws.uniform(-9000, 9000, (60, 1, 3)) + draws.uniform(-6000, 6000, (60, 3, 3))
    first, nearness = rendering.trace(triangles)
    right, up = rendering._rays(np.arange(24 * 18))
    rays = np.stack([right, up, np.ones(len(right))], 1)
    depth = np.full((len(rays), len(triangles)), np.inf)
    for number, (a, b, c) in enumerate(triangles):
        solved = np.linalg.solve(np.stack([a, b, c], 1), rays.T).T  # weights of the corners, up to 1 / depth
        hit = (solved > 0).all(1)
        depth[hit, number] = 1 / solved[hit].sum(1)
    assert {bool(crosses) for crosses in (triangles[..., 2].min(1) < 0) & (triangles[..., 2].max(1) > 0)} == {
        True,
        False,
    }
    expected = np.where(np.isfinite(depth.min(1)), depth.argmin(1), rendering.NOTHING)
    assert (first == expected).all()
    assert np.allclose(1 / nearness[first >= 0], depth.min(1)[first >= 0])


def test_rooms_are_written_repeat_themselves_and_are_read(tmp_path: Path, file: Path, small: Package) -> None:
    for output in ("one", "two"):
        built = build("rooms", tmp_path / output, packages=[file], say=print)
        assert built.counts == COUNTS["rooms"]
    hues = {}
    for split in PARTS:
        one, two = (tmp_path / output / f"{split}.h5" for output in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        data = build_dataset("rooms", split, root=tmp_path / "one")
        assert data.point_classes == list(LABELS)
        with h5py.File(one) as h5:
            labels, colours, instances = h5["label"][:], h5["rgb"][:].astype(int), h5["instance"][:]
            assert len(h5["offset"]) == COUNTS["rooms"][split] + 1
            assert (
                h5["kind"][:].tolist()
                == [b"living", b"bedroom", b"kitchen", b"bath", b"office"][: COUNTS["rooms"][split]]
            )
            assert b"CC BY 3.0" in h5.attrs["licence"]
        assert set(labels) == set(range(len(LABELS))) or split == "test"
        hues[split] = np.sign(colours[instances > 0] @ [1, 0, -1])
    assert (hues["train"] == 1).all()  # of the models of its own part
    assert (hues["test"] == -1).all()
    assert "chair_test, chair_train" in (tmp_path / "one" / "ATTRIBUTION.txt").read_text()


def test_pictures_masks_and_boxes_agree(tmp_path: Path, file: Path, small: Package) -> None:
    for output in ("one", "two"):
        assert build("views", tmp_path / output, packages=[file], say=print).counts == COUNTS["views"]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 2 + 2 + 3 * sum(COUNTS["views"].values())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    for split in PARTS:
        content = json.loads((tmp_path / "one" / f"{split}.json").read_text())
        assert [image["room"] for image in content["images"]] == [0, 0, 0, 1][: COUNTS["views"][split]]
        for image in content["images"]:
            stem = (tmp_path / "one" / split / image["file_name"]).with_suffix("")
            colours, labels, instances = (
                np.asarray(Image.open(f"{stem}{suffix}.png")).astype(int) for suffix in ("", "_label", "_instance")
            )
            assert ((labels <= WALL) == (instances == 0))[labels != 255].all()
            hue = (colours @ [1, 0, -1])[instances > 0]
            assert (hue > 0).all() if split == "train" else (hue < 0).all()
            objects = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
            counts = np.bincount(instances.ravel())
            assert [entry["instance"] for entry in objects] == [n for n in np.flatnonzero(counts >= 60) if n]
            for entry in objects:
                rows, columns = np.nonzero(instances == entry["instance"])
                left, top, width, height = entry["bbox"]
                assert (columns.min(), rows.min()) == (left, top)
                assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
                assert set(labels[rows, columns]) == {entry["category_id"]}
        pictures = build_dataset("views", split, root=tmp_path / "one")
        assert len(pictures) == COUNTS["views"][split]
        assert pictures.groups is not None
        assert len(pictures.groups.unique()) == (2 if split == "train" else 1)


def test_a_camera_sees_what_a_scanner_sees(rooms: list[Room]) -> None:
    """Points of a scan, projected, fall on pixels of their own object."""
    room = rooms[0]
    camera = composed.cameras(room, "train")[0]
    picture = rendering.render(rendering.scene_of(room), camera)
    points, _, _, instances = scanning.surfaces(room, np.random.default_rng(0))
    seen = scanning.visible(points - camera.eye.astype(int)) & (instances > 0)
    right, up, forward = ((points[seen] - camera.eye) @ camera.axes.T).T
    column = ((right / forward / rendering.SPREAD + 1) / 2 * rendering.WIDTH).astype(int)
    row = ((1 - up / forward / (rendering.SPREAD * 0.75)) / 2 * rendering.HEIGHT).astype(int)
    inside = (forward > 5000) & (column >= 1) & (column < 319) & (row >= 1) & (row < 239)
    assert inside.sum() > 300
    assert (picture.instances[row[inside], column[inside]] == instances[seen][inside]).mean() > 0.9


def test_every_label_has_models_on_both_sides() -> None:
    used = models_of("rooms")
    assert len(used) == len([model for model in read_list("home") if model.label not in ("tool", "tree")])
    for part in PARTS:
        assert {LABEL_OF[model.label] for model in used if model.part == part} == set(LABELS[WALL + 1 :])


@exhaustive
@pytest.mark.parametrize("name", ["home", "rooms", "views"])
def test_the_real_package_gives_the_known_content(name: str, tmp_path: Path) -> None:
    """Where the package is: in the folder of downloads, or that of ``POINTADAPTERX_PACKAGES``."""
    folder = Path(os.environ.get("POINTADAPTERX_PACKAGES") or downloads_folder())
    if not (folder / RECIPES[name].package.file).is_file():
        pytest.skip(f"needs {RECIPES[name].package.file} in {folder}")
    built = build(name, tmp_path / name, packages=[folder], say=print)
    assert not built.differing
    assert RECIPES[name].known.keys() == set(PARTS)
