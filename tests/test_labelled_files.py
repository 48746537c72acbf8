"""Files of points with labels, as other programs and our own readers read them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.labelled_clouds import read_labelled
from pointadapterx.datasets.point_files import load_cloud
from pointadapterx.errors import CheckpointError, ConfigError, DataError
from pointadapterx.labelled_files import FILE_KINDS, write_labelled
from pointadapterx.palette import KINDS, MANY, label_colours, rgb

NAMES = ["floor", 'wall, "outer"', "Dach ü"]
RNG = np.random.default_rng(0)
PLACE = np.array([412_000.0, 5_283_000.0, 431.0])
FAR = np.round(RNG.uniform(0, 50, (300, 3)), 3) + PLACE  # metres, as of a map
NEAR = RNG.normal(size=(300, 3)).astype(np.float32).astype(np.float64)
LABELS = RNG.integers(-1, 3, 300)
CONFIDENCE = RNG.random(300).astype(np.float32)


def written(tmp_path: Path, kind: str, points: np.ndarray = FAR, labels: np.ndarray = LABELS, **more: Any) -> Path:
    path = tmp_path / f"scan{kind}"
    write_labelled(path, kind, points, labels, CONFIDENCE, NAMES, **more)
    return path


@pytest.mark.parametrize("kind", FILE_KINDS)
@pytest.mark.parametrize("points", [FAR, NEAR], ids=["far", "near"])
def test_our_own_reader_gets_the_coordinates_in_order(tmp_path: Path, kind: str, points: np.ndarray) -> None:
    found = load_cloud(written(tmp_path, kind, points), 10, 0)
    assert found.doubts == ()
    exact = kind in (".ply", ".csv")
    digit = 5e-9 if points is NEAR else 4 * np.spacing(5_283_000.0)  # half a step of LAS; its sum with an offset
    np.testing.assert_allclose(found.points, points, rtol=0, atol=0 if exact else digit)


@pytest.mark.parametrize(("points", "kind"), [(FAR, "float64"), (NEAR, "float32")], ids=["far", "near"])
def test_open3d_reads_ply(tmp_path: Path, points: np.ndarray, kind: str) -> None:
    open3d = pytest.importorskip("open3d")
    cloud = open3d.t.io.read_point_cloud(str(written(tmp_path, ".ply", points))).point
    assert cloud.positions.numpy().dtype == kind
    np.testing.assert_array_equal(cloud.positions.numpy(), points)
    np.testing.assert_array_equal(cloud.label.numpy()[:, 0], LABELS)
    np.testing.assert_array_equal(cloud.confidence.numpy()[:, 0], CONFIDENCE)
    np.testing.assert_array_equal(cloud.colors.numpy()[LABELS == 1][0], rgb(KINDS[1]))


def test_names_are_comments_of_ply(tmp_path: Path) -> None:
    header = written(tmp_path, ".ply").read_bytes().partition(b"end_header")[0].decode()
    lines = [line for line in header.splitlines() if line.startswith("comment")]
    assert lines == ["comment label 0 floor", 'comment label 1 wall, "outer"', "comment label 2 Dach ü"]


@pytest.mark.parametrize("kind", [".las", ".laz"])
def test_laspy_reads_numbers_that_fit_as_its_classes(tmp_path: Path, kind: str) -> None:
    laspy = pytest.importorskip("laspy")
    found = laspy.read(written(tmp_path, kind, labels=np.abs(LABELS), values=[2, 6, 255]))
    np.testing.assert_array_equal(found.classification, np.array([2, 6, 255])[np.abs(LABELS)])
    np.testing.assert_array_equal(found["confidence"], CONFIDENCE)
    assert found.header.scales.tolist() == [0.001] * 3  # of the coordinates, not finer
    (table,) = [vlr for vlr in found.vlrs if (vlr.user_id, vlr.record_id) == ("LASF_Spec", 0)]
    assert table.lookups == {2: "floor", 6: "wall outer", 255: "Dach "}  # laspy shows letters and digits alone
    assert "label" not in list(found.point_format.dimension_names)


@pytest.mark.parametrize("values", [[0, 1, 256], None], ids=["large", "none"])
def test_other_numbers_are_a_field_of_las(tmp_path: Path, values: list[int] | None) -> None:
    laspy = pytest.importorskip("laspy")
    labels = LABELS if values is None else np.abs(LABELS)
    found = laspy.read(written(tmp_path, ".las", labels=labels, values=values))
    np.testing.assert_array_equal(found["label"], labels if values is None else np.array(values)[labels])
    assert not found.classification.any()


def test_a_scan_keeps_its_steps_fields_and_records(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(version="1.2", point_format=1)
    header.offsets, header.scales = np.array([400_000.0, 5e6, 0]), np.full(3, 0.01)
    header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", b"\1\0\1\0\0\0\0\0"))
    scan = laspy.LasData(header)
    scan.xyz, scan.intensity = FAR, np.arange(300)
    source = tmp_path / "scan.las"
    scan.write(source)
    points = np.asarray(laspy.read(source).xyz)
    path = tmp_path / "answer.las"
    write_labelled(path, ".las", points, np.abs(LABELS), None, NAMES, source=source)
    found = laspy.read(path)
    np.testing.assert_array_equal(np.asarray(found.xyz), points)
    np.testing.assert_array_equal(found.intensity, np.arange(300))
    np.testing.assert_array_equal(found.classification, np.abs(LABELS))
    assert [vlr.user_id for vlr in found.vlrs] == ["LASF_Projection", "LASF_Spec"]
    write_labelled(path, ".las", FAR[:5], np.abs(LABELS[:5]), None, NAMES, source=source)  # of other points
    assert len(laspy.read(path)) == 5


@pytest.mark.parametrize("values", [None, [7, 8, 300]], ids=["small", "large"])
@pytest.mark.parametrize("field", [None, "mine", "Label"])
def test_labels_of_the_scan_are_replaced(tmp_path: Path, values: list[int] | None, field: str | None) -> None:
    """Wherever our reader looks for them; other fields and their names stay."""
    laspy = pytest.importorskip("laspy")
    scan = laspy.LasData(laspy.LasHeader(version="1.4", point_format=6))
    scan.header.scales = np.full(3, 0.001)
    for name in ("Label", "mine", "other"):
        scan.add_extra_dim(laspy.ExtraBytesParams(name=name, type="u1"))
        scan[name] = np.full(300, 9, np.uint8)
    scan.xyz = NEAR
    scan.write(tmp_path / "scan.las")
    points, path, wanted = np.asarray(laspy.read(tmp_path / "scan.las").xyz), tmp_path / "a.las", LabelField(field)
    labels = np.abs(LABELS)
    given = {"values": values, "source": tmp_path / "scan.las", "replaced": wanted.is_read}
    write_labelled(path, ".las", points, labels, None, NAMES, **given)
    found = read_labelled(path, wanted)
    np.testing.assert_array_equal(found.labels, labels if values is None else np.array(values)[labels])
    assert (np.asarray(laspy.read(path)["other"]) == 9).all()
    assert (np.asarray(laspy.read(path)["mine"]) == 9).all() == (field != "mine")
    assert set(found.names) == ({0, 1, 2} if values is None else {7, 8})


def test_csv_is_read_by_anything(tmp_path: Path) -> None:
    with written(tmp_path, ".csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [[float(row[axis]) for axis in "xyz"] for row in rows] == FAR.tolist()
    assert [int(row["label"]) for row in rows] == LABELS.tolist()
    assert [row["name"] for row in rows] == [[*NAMES, ""][label] for label in LABELS]
    np.testing.assert_array_equal([np.float32(row["confidence"]) for row in rows], CONFIDENCE)


def test_values_are_written_and_none_is_no_class(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_labelled(path, ".csv", FAR[:3], np.array([0, 1, -1]), values=[-1, 7])
    assert [row.split(",")[3] for row in path.read_text().splitlines()] == ["label", "-1", "7", "-2"]


def test_many_classes_share_colours() -> None:
    assert label_colours(8).tolist() == [rgb(colour).tolist() for colour in KINDS]
    assert label_colours(23)[[0, 20, 22]].tolist() == [rgb(MANY[place]).tolist() for place in (0, 0, 2)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kind": ".obj"}, ConfigError, r"written as \.ply, \.las, \.laz, \.csv, not as '\.obj'"),
        ({"points": FAR[:, :2]}, DataError, r"shape \(300, 2\), expected \(points, 3\)"),
        ({"labels": LABELS[:-1]}, DataError, "299.* for 300 points"),
        ({"labels": LABELS.astype(float)}, DataError, "float64 labels"),
        ({"labels": LABELS + 1}, DataError, "label 3, expected 0 to 2, or -1"),
        ({"labels": LABELS - 1}, DataError, "label -2"),
        ({"confidence": CONFIDENCE[:7]}, DataError, "confidence of shape"),
        ({"values": [1, 2]}, DataError, "2 numbers for 3 classes"),
        ({"values": [1, 2, 2**40]}, DataError, "number 1099511627776"),
        ({"kind": ".las", "points": np.full((300, 3), np.nan)}, DataError, "LAS holds no NaN"),
    ],
)
def test_nothing_wrong_is_written(tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    given = {"kind": ".ply", "points": FAR, "labels": LABELS, "confidence": CONFIDENCE, "names": NAMES} | change
    with pytest.raises(error, match=words):
        write_labelled(path, **given)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not be written"):
        written(tmp_path / "file", ".csv")
