"""A folder of the user's own files with a label for each point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.config import Config
from pointadapterx.datasets import LabelledFolder, build_dataset
from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.labelled_clouds import LABELLED_KINDS, read_labelled
from pointadapterx.datasets.labelled_source import read_label_names
from pointadapterx.datasets.preparation import Preparation
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.labelled_files import FILE_KINDS, write_labelled
from pointadapterx.tasks.exchange import Ready
from pointadapterx.tasks.point_segmentation import PointFacts
from tests.conftest import small_config

RNG = np.random.default_rng(0)
POINTS = np.round(RNG.uniform(-1, 1, (40, 3)), 4)
LABELS = np.where(POINTS[:, 1] > 0, 7, 3)
AUTO = LabelField()


def write(path: Path, points: np.ndarray = POINTS, labels: np.ndarray = LABELS, field: str = "label") -> Path:
    """A file of any kind with labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.column_stack([points, labels])
    words = "\n".join(" ".join(f"{value:g}" for value in row) for row in rows)
    match path.suffix:
        case ".ply":
            names = "".join(f"property float {name}\n" for name in ("x", "y", "z", field))
            path.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n{names}end_header\n{words}\n")
        case ".pcd":
            header = f"FIELDS x y z {field}\nSIZE 4 4 4 4\nTYPE F F F I\nWIDTH {len(rows)}\nHEIGHT 1\nDATA ascii\n"
            path.write_text(f"{header}{words}\n")
        case ".csv":
            path.write_text(f"x,y,z,{field}\n" + words.replace(" ", ",") + "\n")
        case ".npy":
            kinds = [(name, "f8") for name in "xyz"] + [(field, "i4")]
            np.save(path, np.array([tuple(row) for row in rows], kinds))
        case ".npz":
            np.savez(path, points=points, **{field: labels})
        case ".h5" | ".hdf5":
            with h5py.File(path, "w") as file:
                file["points"], file[field] = points, labels
        case ".las" | ".laz":
            laspy = pytest.importorskip("laspy")
            header = laspy.LasHeader(version="1.4", point_format=6)
            header.scales = np.full(3, 1e-4)
            scan = laspy.LasData(header)
            scan.xyz = points
            if field != "classification":
                scan.add_extra_dim(laspy.ExtraBytesParams(name=field, type=np.int32))
            scan[field] = labels
            scan.write(path)
        case _:
            path.write_text(f"# x y z {field}\n{words}\n")
    return path


def folder(root: Path, kind: str = ".ply", **more: Any) -> Path:
    for number, part in enumerate(("train", "train", "test")):
        write(root / part / f"{number}{kind}", POINTS + number, **more)
    return root


def read(root: Path, split: str = "train", **options: Any) -> LabelledFolder:
    data = build_dataset("labelled_folder", split, root=root, **{"num_points": 16, **options})
    assert isinstance(data, LabelledFolder)
    return data


@pytest.mark.parametrize("kind", [f".{kind}" for kind in LABELLED_KINDS])
@pytest.mark.parametrize("field", ["label", "my_field"])
def test_every_kind_of_file(tmp_path: Path, kind: str, field: str) -> None:
    path = write(tmp_path / f"a{kind}", field=field)
    found = read_labelled(path, AUTO if field == "label" else LabelField(field))
    np.testing.assert_allclose(found.points, POINTS, atol=1e-6)
    np.testing.assert_array_equal(found.labels, LABELS)
    if field != "label":
        if kind in (".las", ".laz"):  # whose own field is there, though nobody has filled it
            assert not read_labelled(path, AUTO).labels.any()
            return
        with pytest.raises(DataError, match="my_field"):
            read_labelled(path, AUTO)


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_what_we_write_is_read_with_its_names(tmp_path: Path, kind: str) -> None:
    labels = np.where(LABELS == 7, 1, 0)
    write_labelled(tmp_path / f"a{kind}", kind, POINTS, labels, names=["floor", "big wall"], values=[3, 7])
    found = read_labelled(tmp_path / f"a{kind}", AUTO)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.names == ({} if kind == ".csv" else {3: "floor", 7: "big wall"})


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (LabelField("labl"), "it has no field 'labl'; did you mean 'label'? It has label, class; set data.label_field"),
        (LabelField("x"), "it has no field 'x'. It has label, class"),
        (LabelField(9), "column 9 of its 5, counted from 0, is no label"),
        (LabelField(), "its fields label and class may each be the label of the points; set data.label_field to one"),
    ],
)
def test_which_field(tmp_path: Path, field: LabelField, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y,z,label,class\n0,0,0,1,2\n1,2,3,1,2\n")
    with pytest.raises(DataError) as error:
        read_labelled(path, field)
    assert words in str(error.value)
    assert read_labelled(path, LabelField("CLASS")).labels.tolist() == [2, 2]


def test_a_column_by_its_number(tmp_path: Path) -> None:
    rows = np.column_stack([POINTS, RNG.random(40), LABELS])
    np.savetxt(tmp_path / "a.txt", rows, fmt="%.4f")
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", points=rows)
    for name in ("a.txt", "a.npy", "a.npz"):
        np.testing.assert_array_equal(read_labelled(tmp_path / name, LabelField(4)).labels, LABELS)
    with pytest.raises(DataError, match=r"none of its fields has a usual name of labels; it has 3, 4"):
        read_labelled(tmp_path / "a.txt", AUTO)


def test_values_are_numbered_and_kept(tmp_path: Path) -> None:
    train, test = read(folder(tmp_path)), read(tmp_path, "test")
    assert train.point_classes == ["class_3", "class_7"]
    assert train.point_values == [3, 7]
    assert (train.scene_names, test.scene_names) == (["train/0.ply", "train/1.ply"], ["test/2.ply"])
    points, labels = train.draw(torch.arange(2))
    assert points.norm(dim=2).amax() <= 1 + 1e-6
    middle = (POINTS[:, 1].mean() - 0) / np.linalg.norm(POINTS - POINTS.mean(0), axis=1).max()
    assert torch.equal(labels[0] == 1, points[0, :, 1] > -middle - 1e-3)
    assert train.targets.condition is not None
    assert LabelledFolder.parts_in(root=tmp_path) == {"object": ["class_3", "class_7"]}


def test_points_without_a_class(tmp_path: Path) -> None:
    data = read(folder(tmp_path, labels=np.where(POINTS[:, 0] > 0, LABELS, 255)), ignored_labels=[255])
    assert data.point_classes == ["class_3", "class_7"]
    assert set(data.content.labels.tolist()) == {-1, 0, 1}


def test_names_of_labels(tmp_path: Path) -> None:
    folder(tmp_path, ".txt")
    (tmp_path / "names.txt").write_text("7 wall\n3 the floor\n9 never seen\n")
    data = read(tmp_path, label_names="names.txt")
    assert data.point_classes == ["wall", "the floor", "never seen"]
    assert data.point_values == [7, 3, 9]
    assert set(data.content.labels.tolist()) == {0, 1}
    (tmp_path / "names.json").write_text(json.dumps({"3": "floor"}))
    with pytest.raises(DataError, match=r"names\.json: 1 classes of points \(3\); at least 2 are needed"):
        read(tmp_path, label_names="names.json")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", "floor\nbig wall\n", {0: "floor", 1: "big wall"}),
        ("a.json", '["floor", "wall"]', {0: "floor", 1: "wall"}),
        ("a.json", '{"-2": "floor"}', {-2: "floor"}),
        ("a.txt", "0 floor\nwall\n", "some lines begin with a number and some do not"),
        ("a.txt", "0 floor\n0 wall\n", "has the label 0 twice"),
        ("a.txt", "0 floor\n1 floor\n", "has the name floor twice"),
        ("a.json", '{"a": "floor"}', "is no JSON of labels and names"),
        ("a.json", "[1]", "is no JSON of labels and names"),
        ("b.txt", None, "no such file"),
    ],
)
def test_files_of_names(tmp_path: Path, name: str, content: str | None, found: Any) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    if isinstance(found, dict):
        assert read_label_names(tmp_path / name) == found
        return
    with pytest.raises(DataError, match=found):
        read_label_names(tmp_path / name)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_files_that_disagree_about_a_name(tmp_path: Path, part: str) -> None:
    write(tmp_path / "test" / "c.ply", labels=(LABELS == 7).astype(int))
    for name, words in (("train/a", ["floor", "wall"]), (f"{part}/b", ["floor", "ceiling"])):
        path = tmp_path / f"{name}.ply"
        write_labelled(path, ".ply", POINTS, (LABELS == 7).astype(int), names=words)
    with pytest.raises(DataError, match=r"names the label 1 'ceiling', but train/a\.ply names it 'wall'"):
        read(tmp_path, "test" if part == "test" else "train")
    (tmp_path / "names.txt").write_text("floor\nwall\n")
    assert read(tmp_path, label_names="names.txt").point_classes == ["floor", "wall"]


@pytest.mark.parametrize("kind", ["csv", "npz"])
@pytest.mark.parametrize("word", ["wall", "3-wheeler", None])
def test_a_number_is_a_number_beside_any_name(tmp_path: Path, word: str | None, kind: str) -> None:
    """Whatever names there are, and whatever other cells of the file are."""
    (tmp_path / "names.txt").write_text("0 floor\n1 wall\n2 3-wheeler\n7 1\n")
    cells = ["0", "1", "2", word or "1"]
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        points = RNG.uniform(-1, 1, (4, 3))
        if kind == "npz":
            np.savez(tmp_path / part / "a.npz", points=points, label=np.array(cells))
        else:
            rows = (f"{x},{y},{z},{cell}" for (x, y, z), cell in zip(points, cells, strict=True))
            (tmp_path / part / "a.csv").write_text("\n".join(["x,y,z,label", *rows]))
    data = read(tmp_path, label_names="names.txt")
    assert data.clouds is not None
    names = [data.point_classes[label] for label in data.clouds.labels.tolist()]
    assert names == ["floor", "wall", "3-wheeler", word or "wall"]


def test_too_many_labels_are_no_classes(tmp_path: Path) -> None:
    """Which would wrap in the 16 bits that a label has."""
    points = RNG.uniform(-1, 1, (40_000, 3))
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        np.savez(tmp_path / part / "a.npz", points=points, label=np.arange(40_000))
    with pytest.raises(DataError, match=r"a\.npz: 40,000 different labels .* at most 1,000 can be classes; choose"):
        read(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(f"name{number}" for number in range(1001)))
    with pytest.raises(DataError, match=r"names\.txt: 1,001 different labels of points"):
        read(tmp_path, label_names="names.txt")


@pytest.mark.parametrize("absolute", [True, False])
def test_the_file_of_names_is_no_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool) -> None:
    """Where all files lie in one folder, whichever of the two paths is relative."""
    for number in range(5):
        write(tmp_path / "flat" / f"{number}.txt", POINTS + number)
    (tmp_path / "flat" / "names.txt").write_text("3 floor\n7 wall\n")
    monkeypatch.chdir(tmp_path)
    names = str(tmp_path / "flat" / "names.txt") if absolute else "../flat/names.txt"
    assert len(read(Path("flat"), label_names=names)) == 4


def test_parts_and_held_out_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        write(tmp_path / "flat" / f"{number}.ply", POINTS + number)
    train, test = (read(tmp_path / "flat", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert not set(train.scene_names) & set(test.scene_names)
    assert "2 of 10 files are held out" in caplog.text
    root = folder(tmp_path / "parts")
    write(root / "val" / "3.ply", POINTS + 3)
    assert read(root).validation.tolist() == [False, False, True]
    with pytest.raises(DataError, match="has test/ but no file of training"):
        read(write(tmp_path / "one" / "test" / "a.ply").parent.parent)


@pytest.mark.parametrize("normalize", [False, True])
def test_predict_sees_whole_clouds_where_training_has_them(tmp_path: Path, normalize: bool) -> None:
    """Also where they keep their units, with the least coordinates at 0; and the very points that a test draws."""
    points = np.round(np.random.default_rng(3).uniform(-1, 1, (200, 3)), 4) * [1, 2, 3] + [500, 70, -30]
    labels = np.where(points[:, 1] > 70, 7, 3)
    for part in ("train", "test"):
        write(folder := tmp_path / part / "1.npy", points, labels)
    section = {"name": "labelled_folder", "root": str(tmp_path), "num_points": 128, "normalize": normalize, "up": "z"}
    sections = small_config("lora").dump() | {"data": section, "task": {"name": "semantic_segmentation"}}
    sections.pop("head")
    sections["eval"]["select"] = None
    config = Config.of(sections)
    data = read(tmp_path, "test", num_points=128, normalize=normalize, up="z")
    place, inputs = tmp_path / "a.safetensors", Preparation.of(data)._asdict()
    facts = PointFacts(data.point_classes)
    save_adapter(build_model(config), place, config=config, facts=facts, metrics={"inputs": inputs})
    (item,) = Predictor(place).ready([folder])
    assert isinstance(item, Ready)
    np.testing.assert_allclose(item.values, data[0]["points"], atol=1e-4)
    assert item.piece is not None
    assert [data.point_values[k] for k in data[0]["point_labels"]] == labels[item.piece.index].tolist()
    assert not item.warnings


def test_scenes_in_blocks_with_another_axis_up(tmp_path: Path) -> None:
    data = read(folder(tmp_path, ".las", field="classification"), block=0.5, up="z")
    points, _ = data.draw(torch.arange(len(data)))
    assert points[..., [0, 2]].abs().max() <= 0.25 + 1e-6
    assert points[..., 1].min() >= 0
    assert len(data) == 4  # 80 points, 16 a sample
    with pytest.raises(ConfigError, match="blocks keep the units of their scene"):
        read(tmp_path, block=0.5, normalize=True)


def test_the_config_knows_its_classes(tmp_path: Path) -> None:
    sections = small_config("lora").dump()
    sections.pop("head")
    sections["data"] = {"name": "labelled_folder", "root": str(folder(tmp_path, field="seg")), "num_points": 16}
    sections["data"]["label_field"] = "seg"
    sections["eval"]["select"] = None
    config = Config.of({"task": {"name": "part_segmentation"}, **sections})
    assert config.task.point_classes == ["class_3", "class_7"]
    sections["data"]["label_field"] = "sag"
    with pytest.raises(ConfigError, match=r"data\.root: .*no field 'sag'; did you mean 'seg'\?"):
        Config.of({"task": {"name": "part_segmentation"}, **sections})


def test_broken_files_are_counted(tmp_path: Path) -> None:
    """Training names the first one, and says how many there are, so that they need not be mended one by one."""
    root = folder(tmp_path)
    for number in (0, 1):
        write(root / "train" / f"{number}.ply", POINTS, field="grey")
    with pytest.raises(DataError, match=r"0\.ply: .*grey.* \(2 of 2 files cannot be read; doctor lists them\)$"):
        read(root)
