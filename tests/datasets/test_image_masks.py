"""Pictures with masks: what is read, what is refused, and how masks follow their pictures."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx.commands.main import main
from pointadapterx.datasets import IMAGE_TRANSFORMS, Images, MaskedImages, build_augment, build_dataset
from pointadapterx.datasets.ade20k import ADE20K_CLASSES
from pointadapterx.datasets.image_masks import MaskFile
from pointadapterx.datasets.image_transforms import IGNORED, Pictures, put_back
from pointadapterx.datasets.object_masks import VOC_CLASSES
from pointadapterx.errors import ConfigError, DataError
from tests.masks import (
    CLASSES,
    SIZE,
    save,
    scene,
    write_ade20k,
    write_mask_folder,
    write_views,
    write_voc_masks,
)

WRITERS = {
    "mask_folder": write_mask_folder,
    "ade20k": write_ade20k,
    "views": write_views,
    "voc_masks": write_voc_masks,
}
NAMES = {"ade20k": ADE20K_CLASSES, "voc_masks": VOC_CLASSES}


def masked(name: str, split: str, root: Path | None) -> MaskedImages:
    found = build_dataset(name, split, root=root)
    assert isinstance(found, MaskedImages)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_layouts_say_the_same(name: str, tmp_path: Path) -> None:
    """The same scenes in every layout; what each calls unlabelled is."""
    root = WRITERS[name](tmp_path)
    train, test = masked(name, "train", root), masked(name, "test", root)
    assert train.pixel_classes == list(NAMES.get(name, CLASSES))
    rng = np.random.default_rng(0)
    for number in range(3):
        assert np.array_equal(train.mask(number), scene(rng)[1])
    raw = train.raw(torch.arange(2), 16, 3)
    assert raw.shape == (2, 4, 16, 16)
    assert torch.equal(raw[:, :3], train.fetch(torch.arange(2), 16, 3))
    assert train.checksum != test.checksum
    assert train.count_pixels().sum() == len(train) * (SIZE[0] * SIZE[1] - 4)
    assert train.subset([2]).checksum != train.checksum
    assert np.array_equal(train.subset([2]).mask(0), train.mask(2))
    assert (train.groups is not None) == (name == "views")


def test_classes_of_ade20k_are_those_of_the_challenge() -> None:
    assert len(set(ADE20K_CLASSES)) == 150
    assert ADE20K_CLASSES[::30] == ("wall", "armchair", "river", "airplane", "food")


def test_digit_scenes_are_drawn_the_same_again() -> None:
    test = masked("digit_scenes", "test", None)
    assert test.checksum == masked("digit_scenes", "test", None).checksum
    assert (test.count_pixels() > 0).all()
    digits = build_dataset("digits", "test").labels.tolist()
    assert [mask.unique().tolist() for mask in test.masks] == [[0, 1 + label] for label in digits]  # each in one scene
    bright, dark = (test.pixels[:, 0][chosen].float().mean() for chosen in (test.masks > 0, test.masks == 0))
    assert bright > 2 * dark
    with pytest.raises(ConfigError, match="are drawn, not read"):
        build_dataset("digit_scenes", "test", root="here")


def test_letterboxed_pictures_keep_their_shape(tmp_path: Path) -> None:
    data = masked("mask_folder", "train", write_mask_folder(tmp_path, size=(20, 30)))
    raw = data.raw(torch.arange(1), 15, 3, letterbox=True)[0]
    assert (raw[3, 10:] == IGNORED).all()
    assert (raw[:3, 10:] == 128).all()
    assert np.array_equal(raw[3, :10].numpy(), data.mask(0)[1::2, 1::2])
    in_memory = Images(torch.zeros(1, 1, 4, 8, dtype=torch.uint8), torch.zeros(1), ["a"], "train")
    assert in_memory.fetch(torch.arange(1), 8, 1, letterbox=True)[0, 0, :, 0].tolist() == [0] * 4 + [128] * 4


def test_validation_part_of_a_folder_is_that_of_training(tmp_path: Path) -> None:
    write_mask_folder(tmp_path, {"train": 3, "val": 2, "test": 1})
    train = masked("mask_folder", "train", tmp_path)
    assert train.validation is not None
    assert train.validation.tolist() == [False] * 3 + [True] * 2
    write_mask_folder(tmp_path / "two", {"train": 3, "val": 2})
    assert len(masked("mask_folder", "test", tmp_path / "two")) == 2


@pytest.mark.parametrize("name", IMAGE_TRANSFORMS)
def test_labels_and_frames_follow_the_pictures(name: str) -> None:
    """A picture whose brightness says where a pixel was, up to the rounding of its label."""
    places = torch.arange(32).expand(6, 32, 32)  # along x
    augment, generator = build_augment([name, "flip"] if name != "flip" else name, "images"), torch.Generator()
    images = places[:, None].float()
    found = augment.carry_pictures(Pictures(images, places), generator.manual_seed(1))
    assert torch.equal(found.images, augment(images, generator.manual_seed(1)))
    assert found.pixels is not None
    assert found.frame is not None
    known = found.pixels != IGNORED
    assert known.all() == (name == "flip")
    assert known.float().mean() > 0.6
    assert (found.images[:, 0] - found.pixels).abs()[known].max() <= 0.5 + 1e-4
    back, reached = put_back(found.images, found.frame)
    inside = reached[:, 0] > 0
    assert inside.float().mean() > 0.5
    assert (back[:, 0] - places).abs()[inside].max() < 1
    assert (back[:, 0] - places).abs()[inside].mean() < 0.1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_numbers_of_few_bits_are_read_as_they_are(bits: int, tmp_path: Path) -> None:
    """PNG's own form: Pillow writes none with 2 or 4 bits."""
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    values = np.array([[0, 1, 1, 0, 1, 0, 0, 1]] if bits == 1 else [[0, 1, 2, 3, 3, 2, 1, 0]])
    packed = np.packbits(np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:].ravel()).tobytes()
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + packed)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(MaskFile(tmp_path / "m.png", range(4)).read(), values)


def test_views_may_lack_rooms_but_not_ids_of_their_own(tmp_path: Path) -> None:
    content = json.loads((write_views(tmp_path) / "train.json").read_text())
    del content["images"][2]["room"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert masked("views", "train", tmp_path).groups is None
    content["categories"][1]["id"] = content["categories"][0]["id"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"name 'disc' and id 3; expected a name and a number .* of its own"):
        masked("views", "train", tmp_path)


def test_unmoved_pixels_need_no_frame() -> None:
    assert build_augment("none", "images").carry_pictures(Pictures(torch.zeros(1, 1, 4, 4))).frame is None


def mask_of(root: Path) -> Path:
    return root / "masks" / "train" / "3.png"


def rgb(root: Path) -> None:
    save(np.zeros((*SIZE, 3), np.uint8), mask_of(root))


def jpeg(root: Path) -> None:
    mask = mask_of(root)
    Image.open(mask).save(mask.with_suffix(".jpg"))
    mask.with_suffix(".jpg").rename(mask)


def sixteen_bits(root: Path) -> None:
    values = np.zeros(SIZE, np.uint16)
    values[3, 3:6] = 700
    save(values, mask_of(root))


def strange_label(root: Path) -> None:
    values = np.zeros(SIZE, np.uint8)
    values[0] = 3
    save(values, mask_of(root))


def read_all(root: Path) -> None:
    data = masked("mask_folder", "train", root)
    data.raw(torch.arange(len(data)), 16, 3)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no mask": (lambda root: mask_of(root).unlink(), "3.png: its mask .*masks/train/3.png is missing; add it"),
    "mask of another size": (
        lambda root: save(np.zeros((5, 6), np.uint8), mask_of(root)),
        "3.png: 28 x 20 pixels, but its mask has 6 x 5; make them alike",
    ),
    "mask in colour": (rgb, r"3.png: a mask in colour \(mode RGB\), .* save one number a pixel"),
    "JPEG mask": (jpeg, "3.png: a mask of the format JPEG, which changes the numbers of classes; save masks as PNG"),
    "damaged mask": (lambda root: mask_of(root).write_bytes(b"no"), "3.png: not a readable mask .* replace it"),
    "label out of range": (strange_label, r"the number 3 in 28 pixels, .* no class \(0 to 2\) .* unlabelled \(255\)"),
    "16 bits out of range": (sixteen_bits, r"holds the number 700 in 3 pixels, which is no class"),
    "damaged picture": (
        lambda root: (root / "images" / "train" / "3.png").write_bytes(b"no"),
        "3.png: not a readable image .* replace or remove it",
    ),
    "no classes": (lambda root: (root / "classes.txt").unlink(), "classes.txt: is missing; write the names"),
    "a class twice": (
        lambda root: (root / "classes.txt").write_text("a\nb\na\n"),
        "line 3 has 'a' a second time; give every class a name of its own",
    ),
    "one class": (lambda root: (root / "classes.txt").write_text("a\n"), "1 classes of pixels; .* from 2 to 255"),
    "a part twice": (
        lambda root: (root / "images" / "training").mkdir(),
        "images/training: train is the part train as well; make them one folder",
    ),
    "scaled numbers": (
        lambda root: mask_of(root).write_bytes(b"P5\n28 20\n20\n" + bytes(560)),
        "3.png: not a readable mask .grey values up to 20 are scaled by readers; save numbers as PNG",
    ),
    "no pictures": (
        lambda root: (root / "images").rename(root / "photos"),
        "holds no picture of the split train; mask_folder has images/",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_data_are_refused_in_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training stops at it; the doctor says the same, and goes on."""
    root = write_mask_folder(tmp_path)
    damage, words = WRONG[what]
    damage(root)
    with pytest.raises(DataError, match=words) as caught:
        read_all(root)
    assert "\n" not in str(caught.value)
    if what == "no pictures":
        return
    status = main(["doctor", str(root), "--name", "mask_folder"])
    said = capsys.readouterr()
    assert status in (1, 2)
    assert re.search(words, said.out + said.err)


def test_doctor_looks_at_classes_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mask_folder(tmp_path)
    (root / "classes.txt").write_text("\n".join([*CLASSES, "star", "moon"]))
    save(np.full(SIZE, 255, np.uint8), root / "masks" / "train" / "0.png")
    save(np.full(SIZE, 4, np.uint8), root / "masks" / "test" / "0.png")
    copied = (root / "images" / "train" / "1.png").read_bytes()
    (root / "images" / "test" / "1.png").write_bytes(copied)
    assert main(["doctor", str(root), "--name", "mask_folder"]) == 1
    said = capsys.readouterr().out
    for words in (
        "TO MEND: classes of the test alone: moon",
        "note: classes that no picture shows: star",
        "TO MEND: no pixel has a class: train/0.png",
        "TO MEND: the same picture in training and test: train/1.png, test/1.png",
        "3 to mend",
    ):
        assert words in said
