"""Kinds of wrong data with a label for each point: the doctor says of each what is wrong, where, and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.datasets.labelled_folder import LabelledFolder
from pointadapterx.errors import DataError
from pointadapterx.labelled_files import write_labelled
from tests.synthetic import write_ldraw_parts, write_shapenetpart, write_shapenetpart_h5

POINTS = 120
NAMES = ["floor", "wall", "lamp"]


def cloud(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (POINTS, 3) and labels of three layers."""
    points = np.random.default_rng(seed).uniform(-1, 1, (POINTS, 3))
    return points, ((points[:, 1] + 1) * 1.5).astype(np.int64).clip(max=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nothing is wrong with it."""
    for number in range(6):
        part = "train" if number < 4 else "test"
        write_labelled(tmp_path / part / f"{number}.ply", ".ply", *cloud(number), names=NAMES)
    return tmp_path


def rewrite(
    folder: Path, labels: np.ndarray | None = None, points: np.ndarray | None = None, name: str = "train/1.ply"
) -> None:
    own = cloud(1)
    labels = own[1] if labels is None else labels
    values = np.unique(labels[labels >= 0])
    index = np.where(labels < 0, -1, np.searchsorted(values, labels))
    names = [NAMES[value] if value < 3 else f"class_{value}" for value in values]
    write_labelled(
        folder / name, ".ply", own[0] if points is None else points, index, names=names, values=values.tolist()
    )


def table(folder: Path, suffix: str, header: str, change: Callable[[list[list[str]]], None] | None = None) -> None:
    points, labels = cloud(1)
    rows = [[*(f"{value:.5f}" for value in point), str(label)] for point, label in zip(points, labels, strict=True)]
    if change is not None:
        change(rows)
    (folder / "train" / "1.ply").unlink()
    text = "\n".join([header, *(",".join(row) for row in rows)]) + "\n"
    (folder / "train" / f"1{suffix}").write_text(text)


def no_label(folder: Path) -> None:
    write_table = "\n".join(" ".join(map(str, point)) for point in cloud(1)[0])
    names = "".join(f"property float {axis}\n" for axis in "xyz")
    header = f"ply\nformat ascii 1.0\nelement vertex {POINTS}\n{names}end_header\n"
    (folder / "train" / "1.ply").write_text(header + write_table + "\n")


def two_fields(folder: Path) -> None:
    table(folder, ".csv", "x,y,z,label,class", lambda rows: [row.append("1") for row in rows] and None)


def ragged(folder: Path) -> None:
    (folder / "train" / "1.ply").unlink()
    np.savez(folder / "train" / "1.npz", points=cloud(1)[0], label=cloud(1)[1][:-5])


def short_row(folder: Path) -> None:
    table(folder, ".csv", "x,y,z,label", lambda rows: rows[7].pop() and None)


def fraction(folder: Path) -> None:
    table(folder, ".csv", "x,y,z,label", lambda rows: rows[7].__setitem__(3, "1.5"))


def not_a_number(folder: Path) -> None:
    table(folder, ".csv", "x,y,z,label", lambda rows: rows[7].__setitem__(3, "nan"))


def word(folder: Path) -> None:
    (folder / "names.txt").write_text("floor\nwalls\nlamp\n")
    table(folder, ".csv", "x,y,z,label", lambda rows: rows[7].__setitem__(3, "wall"))


def array_of_words(folder: Path) -> None:
    (folder / "train" / "1.ply").unlink()
    np.savez(folder / "train" / "1.npz", points=cloud(1)[0], label=np.full(POINTS, "wall"))


def strange_in_test(folder: Path) -> None:
    rewrite(folder, np.where(cloud(4)[1] == 2, 9, cloud(4)[1]), cloud(4)[0], "test/4.ply")


def not_named(folder: Path) -> None:
    (folder / "names.txt").write_text("0 floor\n1 wall\n2 lamp\n")
    rewrite(folder, np.where(cloud(1)[1] == 2, 5, cloud(1)[1]))


def named_twice(folder: Path) -> None:
    (folder / "names.txt").write_text("0 floor\n1 wall\n2 floor\n")


def empty_class(folder: Path) -> None:
    (folder / "names.txt").write_text("0 floor\n1 wall\n2 lamp\n3 door\n")


def unlabelled(folder: Path) -> None:
    rewrite(folder, np.full(POINTS, -1))


def one_class(folder: Path) -> None:
    for number in range(6):
        rewrite(
            folder, np.zeros(POINTS, np.int64), cloud(number)[0], f"{'train' if number < 4 else 'test'}/{number}.ply"
        )


def bad_coordinates(folder: Path) -> None:
    points = cloud(1)[0]
    points[3] = np.nan
    rewrite(folder, points=points)


def leak(folder: Path) -> None:
    rewrite(folder, cloud(0)[1], cloud(0)[0], "test/4.ply")


def other_numbers(folder: Path) -> None:
    rewrite(folder, cloud(1)[1] + 100)


def other_name(folder: Path, name: str = "train/1.ply") -> None:
    write_labelled(folder / name, ".ply", *cloud(1), names=["floor", "ceiling", "lamp"])


def other_name_in_test(folder: Path) -> None:
    other_name(folder, "test/4.ply")
    other_name(folder, "test/5.ply")


def many_labels(folder: Path) -> None:
    rewrite(folder, np.arange(1100), np.random.default_rng(1).uniform(-1, 1, (1100, 3)))


def cut(folder: Path) -> None:
    path = folder / "train" / "1.ply"
    path.write_bytes(path.read_bytes()[:-9])


def empty_file(folder: Path) -> None:
    (folder / "train" / "1.ply").write_bytes(b"")


def no_training(folder: Path) -> None:
    for path in (folder / "train").iterdir():
        path.unlink()


def no_test(folder: Path) -> None:
    for path in (folder / "test").iterdir():
        path.write_bytes(b"ply\n")


def cut_scan(folder: Path) -> None:
    pytest.importorskip("laspy")
    path = folder / "train" / "1.las"
    (folder / "train" / "1.ply").unlink()
    write_labelled(path, ".las", *cloud(1))
    path.write_bytes(path.read_bytes()[:-9])


def wrong_field(folder: Path) -> None:
    """Nothing is wrong with the files."""


def all_ignored(folder: Path) -> None:
    """Nothing is wrong with the files."""


FOLDER: list[tuple[Callable[[Path], None], list[str], str]] = [
    (
        no_label,
        [],
        "none of its fields has a usual name of labels; it has none beside the coordinates; add one",
    ),
    (
        two_fields,
        [],
        "its fields label and class may each be the label of the points; set --label-field to",
    ),
    (ragged, [], "train/1.npz: int64 labels of shape (115,) for 120 points; give each point one number"),
    (
        short_row,
        [],
        "train/1.csv: cannot be read as .csv (line 9 has 3 columns, the lines before it 4); obtain",
    ),
    (fraction, [], "train/1.csv: 1 of 120 labels of points are no whole numbers, such as 1.5; choose another"),
    (not_a_number, [], "train/1.csv: 1 of 120 labels of points are no whole numbers, such as nan; choose another"),
    (word, [], "train/1.csv: line 9: the label 'wall' is a word, not a number; write the words into a file, each in"),
    (word, ["--label-names", "names.txt"], "the label 'wall' is none of the names in --label-names; did you mean"),
    (array_of_words, [], "train/1.npz: the label 'wall' is a word, not a number; write the words into a file, each in"),
    (
        strange_in_test,
        [],
        "test/4.ply: 48 of 120 labels of points are none of the classes, such as 9; expected 0, 1, 2",
    ),
    (
        not_named,
        ["--label-names", "names.txt"],
        "train/1.ply: 31 of 120 labels of points are none of the",
    ),
    (named_twice, ["--label-names", "names.txt"], "names.txt: has the name floor twice; keep one"),
    (
        empty_class,
        ["--label-names", "names.txt"],
        "note: classes without a training point: door; nothing, if it is rare",
    ),
    (unlabelled, [], "train/1.ply: none of its 120 points has a label; label some, or remove it"),
    (one_class, [], "training points have one class; a model that labels points needs at least two"),
    (
        bad_coordinates,
        ["--nan", "error"],
        "train/1.ply: point 4 has NaN or infinite coordinates, as 1 of 120",
    ),
    (leak, [], "the same cloud in training and test: train/0.ply, test/4.ply; keep it in one of them"),
    (
        other_numbers,
        [],
        "labels that no other training cloud has: train/1.ply; look whether they are numbered",
    ),
    (other_name, [], "train/1.ply: names the label 1 'ceiling', but train/0.ply names it 'wall'; name it alike, or"),
    (other_name_in_test, [], "2 files (test/4.ply, test/5.ply): names the label 1 'ceiling', but train/0.ply names"),
    (many_labels, [], "train/1.ply: 1,100 different labels of points, of which at most 1,000 can be classes; choose"),
    (cut, [], "train/1.ply: cannot be read as .ply (its header declares 120 rows of vertex"),
    (empty_file, [], "train/1.ply: the file is empty (0 bytes); download it again"),
    (no_training, [], "has test/, train/ but no file of training; put files into"),
    (no_test, [], "split test has no cloud that can be read; add some to test"),
    (cut_scan, [], "train/1.las: cannot be read as .las (its header declares 120 points, and 119 are there)"),
    (
        wrong_field,
        ["--label-field", "labl"],
        "6 files (train/0.ply, train/1.ply, train/2.ply, train/3.ply and 2 more): it has no field 'labl'; did you mean",
    ),
    (all_ignored, ["--ignored-labels", "1,2"], "training points have one class; a model that labels points"),
]


COUNT = {no_test: 2, other_name_in_test: 2}
"""Lines where a split is left without any file."""


def said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> list[str]:
    """What has to be mended, or the error, or that a class is empty."""
    status = main(["doctor", "--groups", "8", *arguments])
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if line.startswith("TO MEND")]
    assert bool(status) == bool(lines or output.err)
    lines += [line for line in output.out.splitlines() if line.startswith("note: classes without a training")]
    return lines + [line for line in output.err.splitlines() if line.startswith("error:")]


def test_nothing_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--name", "labelled_folder", str(folder), "--groups", "8"]) == 0
    assert "nothing to mend" in capsys.readouterr().out


@pytest.mark.parametrize(("spoil", "options", "words"), FOLDER, ids=lambda case: getattr(case, "__name__", None))
def test_a_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], options: list[str], words: str
) -> None:
    spoil(folder)
    lines = said(capsys, ["--name", "labelled_folder", str(folder), *options])
    assert [line for line in lines if words in line], lines
    assert len(lines) == COUNT.get(spoil, 1), lines


def another_category(root: Path) -> None:
    file = write_shapenetpart(root) / "02000003" / "train0.txt"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([f"{rows[0].rpartition(' ')[0]} 12", *rows[1:]]) + "\n")


def missing_shape(root: Path) -> None:
    (write_shapenetpart(root) / "02000003" / "train0.txt").unlink()


def unknown_category(root: Path) -> None:
    folder = write_shapenetpart(root)
    listing = folder / "train_test_split" / "shuffled_test_file_list.json"
    listing.write_text(json.dumps(["shape_data/04379243/abc"]))


def part_51(root: Path) -> None:
    with h5py.File(write_shapenetpart_h5(root) / "ply_data_train1.h5", "r+") as file:
        file["pid"][2, 3] = 51


def pid_shape(root: Path) -> None:
    write_ldraw_parts(root)
    with h5py.File(root / "train.h5", "r+") as file:
        pid = file["pid"][:, :-1]
        del file["pid"]
        file["pid"] = pid


def category_16(root: Path) -> None:
    write_ldraw_parts(root)
    with h5py.File(root / "train.h5", "r+") as file:
        file["label"][5] = 16


def offsets(root: Path) -> None:
    for split in ("train", "test"):
        with h5py.File(root / f"{split}.h5", "w") as file:
            file["xyz_mm"] = (cloud(split == "test")[0] * 1000).astype(np.int16)
            file["label"], file["offset"] = cloud(0)[1].astype(np.uint8), np.array([0, 90, 60, POINTS])
            file.attrs["labels"] = NAMES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block", "0.01"], "TO MEND: blocks of data.block=0.01 hold about 1 point each, and samples have 2,048: "),
        (
            ["--block", "1000"],
            "TO MEND: data.block=1000 is larger than the clouds, the largest of which measures 2: blocks",
        ),
        (["--block", "1", "--num-points", "8"], "nothing to mend"),
        (["--num-points", "256"], "note: 4 of 4 clouds have fewer points than the 256 of data.num_points, the fewest"),
        ([], "note: classes without a test point: class_7; their IoU stays unknown"),
    ],
)
def test_what_samples_would_hold(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    rewrite(folder, np.where(cloud(1)[1] == 2, 7, cloud(1)[1]))
    rewrite(folder, np.where(cloud(2)[1] == 2, 7, cloud(2)[1]), cloud(2)[0], "train/2.ply")
    main(["doctor", "--groups", "8", "--name", "labelled_folder", str(folder), *options])
    assert words in capsys.readouterr().out


def test_blocks_far_too_small_are_all_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said of clouds that could not be looked at in such blocks."""
    assert main(["doctor", "--groups", "8", "--name", "labelled_folder", str(folder), "--block", "1e-9"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("TO MEND")]
    assert lines[0].startswith("TO MEND: train/0.ply, train/1.ply: measures 1.99, 4e+09 times a block's half")
    assert [line for line in lines if "times a block's half" not in line and "blocks too small" not in line] == []


@pytest.mark.parametrize("count", ["0", "-5", "many"])
def test_a_number_of_points_that_is_none(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--name", "labelled_folder", ".", "--num-points", count])
    assert f"argument --num-points: '{count}' is no number of points" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((0, 7)), "Area_1_office_2: there is no point in it"),
        (np.full((50, 7), np.nan), "Area_1_office_2: holds values that are not finite"),
    ],
)
def test_rooms_without_a_point_are_named(
    points: np.ndarray, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms = tmp_path / "stanford_indoor3d"
    rooms.mkdir()
    room = np.column_stack([np.random.default_rng(0).uniform(0, 3, (900, 3)), np.zeros((900, 3)), np.arange(900) % 13])
    for name, values in (("Area_1_office_1", room), ("Area_1_office_2", points), ("Area_5_office_1", room + 0.1)):
        np.save(rooms / f"{name}.npy", np.where(np.arange(7) == 6, np.floor(values), values))
    assert main(["doctor", "--groups", "8", "--name", "s3dis", str(tmp_path)]) == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("side", ["-1", "inf", "wide"])
def test_a_block_that_is_no_length(side: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--name", "labelled_folder", ".", "--block", side])
    assert f"argument --block: '{side}' is neither a length greater than 0 nor whole" in capsys.readouterr().err


def test_a_scan_without_classes_names_its_other_fields(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    laspy = pytest.importorskip("laspy")
    for path in folder.rglob("*.ply"):
        points, labels = cloud(int(path.stem))
        scan = laspy.LasData(laspy.LasHeader(version="1.4", point_format=6))
        scan.header.scales = np.full(3, 1e-4)
        scan.xyz = points
        scan.add_extra_dim(laspy.ExtraBytesParams(name="kind_of", type=np.int32))
        scan["kind_of"] = labels + 400
        scan.write(path.with_suffix(".las"))
        path.unlink()
    assert main(["doctor", "--name", "labelled_folder", str(folder), "--groups", "8"]) == 1
    assert (
        "note: train/0.las: all labels are 0, as in a field that nobody has filled; choose another --label-field ("
        "train/0.las has kind_of)" in capsys.readouterr().out
    )
    with pytest.raises(DataError, match=r"choose another data\.label_field \(train/0\.las has kind_of\), or other"):
        LabelledFolder("train", root=folder)


@pytest.mark.parametrize("command", ["doctor", "train"])
def test_a_folder_of_labelled_points_by_itself(folder: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    main([command, str(folder)])
    output = capsys.readouterr()
    assert (
        f"its clouds have no labels, but the points in them have some (test/4.ply); look at these with doctor {folder} "
        f"--name labelled_folder, and learn them with train --config labelled_folder data.root={folder}"
    ) in output.out + output.err


@pytest.mark.parametrize("arguments", [["--name", "ldraw_parts"], ["."]])
def test_options_of_labels_belong_to_a_folder(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    (line,) = said(capsys, [*arguments, "--label-field", "label"])
    assert "--label-field: belongs to --name labelled_folder" in line


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        (
            "shapenetpart",
            another_category,
            "parts of another category than Cap, such as 12 (Chair 12); mend",
        ),
        ("shapenetpart", missing_shape, "1 of the 32 listed files of train are missing, the first is"),
        ("shapenetpart", unknown_category, "entry 1 is 'shape_data/04379243/abc', expected shape_data/OFFSET/SHAPE"),
        ("shapenetpart", part_51, "1 of 256 labels of points are none of the classes, such as 51; expected 0 to 49"),
        ("ldraw_parts", pid_shape, "'pid' has shape (32, 255), expected (32, 256): a part for each point of 'data'"),
        ("ldraw_parts", category_16, "has label 16, expected a category from 0 to 15"),
        ("rooms", offsets, "'offset' has to rise from 0 to 120, the number of points, so that each room has one"),
    ],
)
def test_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(tmp_path)
    lines = said(capsys, ["--name", name, str(tmp_path)])
    assert [line for line in lines if words in line], lines
