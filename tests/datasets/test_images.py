"""Data sets of images: what is read, what is refused, and how an image becomes a model's input."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx.build import build_splits
from pointadapterx.datasets import Images, build_augment, build_dataset, build_inputs
from pointadapterx.datasets.vtab import GROUPS, TASKS
from pointadapterx.errors import ConfigError, DataError
from tests.conftest import small_config
from tests.synthetic import write_vtab


def picture(path: Path, color: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (20, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def write_idx(path: Path, array: np.ndarray, packed: bool = True) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def write_fashion_mnist(root: Path, packed: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng, written = np.random.default_rng(0), {}
    for split, prefix, count in (("train", "train", 40), ("test", "t10k", 20)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        suffix = ".gz" if packed else ""
        write_idx(root / f"{prefix}-images-idx3-ubyte{suffix}", images, packed)
        write_idx(root / f"{prefix}-labels-idx1-ubyte{suffix}", labels, packed)
        written[split] = images, labels
    return written


def test_digits_are_a_fixed_stratified_draw() -> None:
    train, test = (build_dataset("digits", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1000, 797)
    assert train.labels.bincount().min() > 90
    assert set(train.positions.tolist()).isdisjoint(test.positions.tolist())
    assert train.checksum == build_dataset("digits", "train").checksum != test.checksum
    image = train[0]["image"]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.uint8
    assert int(train.fetch(torch.arange(1000), 8, 1).max()) == 255
    with pytest.raises(ConfigError, match=r"data\.root .* come with scikit-learn; remove data\.root"):
        build_dataset("digits", "train", root="here")


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_and_its_halves(packed: bool, tmp_path: Path) -> None:
    written = write_fashion_mnist(tmp_path, packed)
    data = build_dataset("fashion_mnist", "train", root=tmp_path)
    assert np.array_equal(data.fetch(torch.arange(40), 28, 1)[:, 0].numpy(), written["train"][0])
    assert data.labels.tolist() == written["train"][1].tolist()
    half = build_dataset("fashion_mnist", "test", root=tmp_path, variant="last5")
    assert half.classes == ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    assert half.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert half.positions.tolist() == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not gzip", "truncated or damaged"),
        (gzip.compress(b"\0\0\x08\x03\0\0\0\x05", mtime=0), "not an IDX file of bytes, or cut off"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0", mtime=0), "not an IDX file of bytes"),
        (b"<!doctype html>", "web page"),
    ],
)
def test_damaged_idx_files(content: bytes, message: str, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte\.gz: .*{message}"):
        build_dataset("fashion_mnist", "train", root=tmp_path)


def test_missing_fashion_mnist_tells_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Fashion-MNIST: files are missing.*github\.com/zalandoresearch"):
        build_dataset("fashion_mnist", "test", root=tmp_path)


def image_folder(root: Path) -> Path:
    for split, per_class in (("train", 3), ("test", 2)):
        for number, name in enumerate(["cat", "dog"]):
            for i in range(per_class):
                picture(root / split / name / "more" / f"{i}.png", (90 * number, 10 * i, 7))
    picture(root / "train" / "cat" / ".hidden" / "x.png")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def test_image_folder(tmp_path: Path) -> None:
    data = build_dataset("imagefolder", "train", root=image_folder(tmp_path))
    assert data.classes == ["cat", "dog"]
    assert data.names == [f"{name}/more/{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    batch = data.fetch(torch.tensor([5, 0]), 6, 3)
    assert batch.shape == (2, 3, 6, 6)
    assert batch[:, :, 0, 0].tolist() == [[90, 20, 7], [0, 0, 7]]
    before = data.checksum
    picture(tmp_path / "train" / "dog" / "more" / "2.png", (1, 2, 3))
    assert build_dataset("imagefolder", "train", root=tmp_path).checksum != before
    assert len(data.subset([4, 1])) == 2
    assert data.subset([4, 1]).names == ["dog/more/1.png", "cat/more/1.png"]


def test_what_an_image_folder_must_have(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.root is required"):
        build_dataset("imagefolder", "train")
    with pytest.raises(DataError, match=r"nowhere/train: no such folder; files lie in"):
        build_dataset("imagefolder", "train", root=tmp_path / "nowhere")
    picture(root / "test" / "bird" / "0.png")
    with pytest.raises(DataError, match="bird are no classes"):
        build_dataset("imagefolder", "test", root=root)
    (root / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images .* in empty"):
        build_dataset("imagefolder", "train", root=root)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    broken = root / "train" / "dog" / "more" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    data = build_dataset("imagefolder", "train", root=root)
    with pytest.raises(DataError, match=r"dog/more/1\.png: not a readable image"):
        data.fetch(torch.arange(6), 6, 3)


def write_vtab_lists(root: Path, task: str, lines: dict[str, list[str]]) -> None:
    (root / task).mkdir(parents=True, exist_ok=True)
    for name, content in lines.items():
        (root / task / name).write_text("\n".join(content) + "\n")


def test_vtab_reads_its_lists(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "dtd" / "images" / f"a b {i}.jpg")
    lines = [f"images/a b {i}.jpg {11 * i}" for i in range(4)]
    write_vtab_lists(
        tmp_path, "dtd", {"test.txt": lines[3:], "train800.txt": [lines[2], lines[0]], "val200.txt": lines[1:2]}
    )
    train, test = (build_dataset("vtab", split, root=tmp_path, variant="dtd") for split in ("train", "test"))
    assert [data.labels.tolist() for data in (train, test)] == [[22, 0, 11], [33]]
    assert train.names == ["images/a b 2.jpg", "images/a b 0.jpg", "images/a b 1.jpg"]
    assert train.validation is not None
    assert train.validation.tolist() == [False, False, True]
    assert (
        train.subset([2, 0]).validation.tolist() == train.outline().subset([2, 0]).validation.tolist() == [True, False]
    )
    assert test.validation is None
    assert len(train.classes) == 47


def vtab_config(root: Path, **settings: Any) -> dict[str, Any]:
    data = {"name": "vtab", "root": str(root), "variant": "kitti", "augment": "none"}
    return small_config("linear", kind="vit", data=data, head={"num_classes": 4}, eval=settings)


def test_a_published_validation_part_is_taken_instead_of_a_draw(tmp_path: Path) -> None:
    write_vtab(tmp_path, "kitti", 4)
    tune = build_splits(vtab_config(tmp_path, protocol="validation", val_fraction=0.9))
    assert tune.val is not None
    assert tune.train.names == [f"images/train800/{i:06d}.png" for i in range(6)]
    assert tune.val.names == [f"images/val200/{i:06d}.png" for i in range(4)]
    final = build_splits(vtab_config(tmp_path, protocol="last"))
    assert final.val is None
    assert final.train.names == tune.train.names + tune.val.names
    assert final.test.checksum == tune.test.checksum


def test_a_few_shot_task_draws_its_validation_part(tmp_path: Path) -> None:
    write_vtab(tmp_path, "patch_camelyon", 2)
    task = {"ways": 2, "shots": 4}
    data = {"name": "vtab", "root": str(tmp_path), "variant": "patch_camelyon", "augment": "none", "few_shot": task}
    config = small_config("linear", kind="vit", data=data, head={"num_classes": 2}, eval={"val_fraction": 0.5})
    splits = build_splits(config)
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (4, 4)
    assert splits.val.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/0.jpg", r"test\.txt:1: 'images/0\.jpg' is not 'path label'"),
        ("images/0.jpg 47", "label from 0 to 46"),
        ("images/7.jpg 3", r"1 of 1 images are missing, first .*7\.jpg"),
    ],
)
def test_wrong_vtab_lists(line: str, message: str, tmp_path: Path) -> None:
    write_vtab_lists(tmp_path, "dtd", {"test.txt": [line]})
    with pytest.raises(DataError, match=message):
        build_dataset("vtab", "test", root=tmp_path, variant="dtd")


def test_vtab_has_its_19_tasks() -> None:
    assert [len(group) for group in GROUPS.values()] == [7, 4, 8]
    assert len(TASKS) == 19
    with pytest.raises(ConfigError, match=r"data\.variant is required .* cifar, caltech101"):
        build_dataset("vtab", "train")


def test_vtab_needs_both_lists_of_its_training_split(tmp_path: Path) -> None:
    write_vtab(tmp_path, "kitti", 4)
    (tmp_path / "kitti" / "val200.txt").unlink()
    with pytest.raises(DataError, match=r"VTAB-1K kitti: files are missing.*val200\.txt \(missing\)"):
        build_dataset("vtab", "train", root=tmp_path, variant="kitti")
    (tmp_path / "kitti" / "val200.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val200\.txt: an empty list"):
        build_dataset("vtab", "train", root=tmp_path, variant="kitti")


def test_grey_and_colour_become_what_the_backbone_takes() -> None:
    colour = torch.tensor([[[[255]], [[0]], [[0]]]], dtype=torch.uint8)
    data = Images(colour, torch.tensor([0]), ["a"], "train")
    assert data.fetch(torch.tensor([0]), 1, 1).item() == 76  # 0.299 of red
    assert data.fetch(torch.tensor([0]), 1, 3).flatten().tolist() == [255, 0, 0]
    grey = Images(colour[:, :1], torch.tensor([0]), ["a"], "train")
    assert grey.fetch(torch.tensor([0]), 2, 3).flatten().tolist() == [255] * 12


def test_a_files_pixels_are_resized_like_an_arrays(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (1, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(path)
    index = torch.tensor([0])
    array, file = (Images(source, index, ["a"], "train").fetch(index, 9, 3).int() for source in (pixels, [path]))
    assert (array - file).abs().max() <= 1


def test_inputs_are_normalised_and_augmented_by_their_generator_alone() -> None:
    config = small_config("linear", kind="vit", data={"augment": ["flip", "shift"], "mean": [0.1, 0.2, 0.3]})
    inputs, data = build_inputs(config), build_dataset("digits", "train")
    raw = inputs.source(data)(torch.arange(5))
    assert raw.shape == (5, 3, 16, 16)
    plain = inputs.for_test(raw)
    torch.testing.assert_close(plain[:, 1], (raw[:, 1] / 255 - 0.2) / 0.5)
    one, two, other = (inputs.for_training(raw, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_flip_and_shift_do_what_they_say() -> None:
    images = torch.arange(2 * 64, dtype=torch.float32).view(2, 1, 8, 8)
    assert torch.equal(build_augment([{"flip": {"p": 1}}], "images")(images), images.flip(3))
    assert torch.equal(build_augment([{"flip": {"p": 0}}], "images")(images), images)
    assert torch.equal(build_augment([{"shift": {"fraction": 0}}], "images")(images), images)
    moved = build_augment("shift", "images")(images, torch.Generator().manual_seed(0))
    found = False
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            want = images[0, :, 1:-1, 1:-1].roll(0)
            have = moved[0, :, 1 + rows : 7 + rows, 1 + columns : 7 + columns]
            found |= torch.equal(have, want)
    assert found
    with pytest.raises(ConfigError, match="unknown transform 'rotation'"):
        build_augment("rotation", "images")
    with pytest.raises(ConfigError, match=r"Flip\(p=2\): expected 0 <= p <= 1"):
        build_augment([{"flip": {"p": 2}}], "images")


def test_a_backbone_takes_its_own_kind_of_data() -> None:
    with pytest.raises(ConfigError, match=r"data\.name: digits holds images, but point_mae takes points"):
        small_config("linear", data={"name": "digits"})
    with pytest.raises(ConfigError, match=r"data\.name: ldraw20 holds points, but vit takes images: ade20k, "):
        small_config("linear", kind="vit", data={"name": "ldraw20", "augment": "none"})
    with pytest.raises(ConfigError, match=r"data\.num_points: belongs to point clouds"):
        small_config("linear", kind="vit", data={"num_points": 3})
    with pytest.raises(ConfigError, match=r"data\.mean: belongs to images"):
        small_config("linear", data={"mean": [0.5]})
    with pytest.raises(ConfigError, match=r"data\.std: 2 numbers for backbone\.channels=3"):
        small_config("linear", kind="vit", data={"std": [0.5, 0.5]})
    with pytest.raises(ConfigError, match=r"data\.num_points: is required"):
        small_config("linear", data={"num_points": None})


def test_files_that_would_start_a_program_are_no_images(tmp_path: Path) -> None:
    """EPS under another name, which Pillow would hand to Ghostscript."""
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(DataError, match=r"x\.png: not a readable image \(none of PNG, JPEG, [\w, ]+\); replace or"):
        Images([path], torch.tensor([0]), ["a"], "train").fetch(torch.tensor([0]), 8, 3)


def test_sixteen_bits_are_scaled_and_unknown_ranges_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    data = Images([tmp_path / "deep.png", tmp_path / "float.tiff"], torch.tensor([0, 0]), ["a"], "train")
    found = data.fetch(torch.tensor([0]), 8, 1)[0, 0].numpy()
    assert np.abs(found.astype(int) - ramp // 257).max() <= 1
    with pytest.raises(DataError, match=r"float\.tiff: .*mode F, whose range is not known"):
        data.fetch(torch.tensor([1]), 8, 1)


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    found = Images([tmp_path / "x.png"], torch.tensor([0]), ["a"], "train")[0]["image"]
    assert found[0, 1, 3] == 255
    assert found.sum() == 3 * 255


def test_a_small_file_of_very_many_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (5000, 5000)).save(path)
    with pytest.raises(DataError, match=r"x\.png: .*its \d+ bytes are said to be 5000 x 5000 pixels"):
        Images([path], torch.tensor([0]), ["a"], "train").fetch(torch.tensor([0]), 8, 3)
