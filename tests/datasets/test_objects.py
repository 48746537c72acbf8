"""Pictures with objects: what the readers take and refuse, and boxes that follow their pictures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx.build import build_model, build_splits
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import build_dataset, build_inputs
from pointadapterx.datasets.inputs import Batches
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.outlines import Instance, described, drawn
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.optional import missing
from pointadapterx.tasks import TASKS, build_task
from pointadapterx.tasks.detection import Detection

WIDTH, HEIGHT = 40, 30
Content = dict[str, Any]


def coco_content(part: str) -> Content:
    """Two pictures of two classes with gaps in their ids; the first has a crowd, the second nothing."""
    first, second = (100, 101) if part == "train" else (200, 201)
    objects = [
        {"id": 1, "image_id": first, "category_id": 7, "bbox": [4, 5, 12, 10], "area": 120, "iscrowd": 0},
        {"id": 2, "image_id": first, "category_id": 3, "bbox": [20, 2, 8, 20], "area": 160, "iscrowd": 0},
        {"id": 5, "image_id": first, "category_id": 3, "bbox": [0, 20, 30, 10], "area": 300, "iscrowd": 1},
    ]
    for number, one in enumerate(objects, 1):
        one["instance"] = number
    return {
        "images": [
            {"id": first, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": second, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": objects,
        "categories": [{"id": 7, "name": "nut"}, {"id": 3, "name": "bolt"}],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder whose first picture of each part is red where the first object is, and green where the second is."""
    for part, shade in (("train", 0), ("test", 40)):
        (tmp_path / part).mkdir()
        content = coco_content(part)
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
        pixels = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
        instances = np.zeros((HEIGHT, WIDTH), np.uint8)
        for channel, one in enumerate(content["annotations"]):
            left, top, width, height = one["bbox"]
            if channel < 2:
                pixels[top : top + height, left : left + width, channel] = 255
            instances[top : top + height, left : left + width] = channel + 1
        Image.fromarray(pixels).save(tmp_path / part / "a.png")
        Image.fromarray(instances).save(tmp_path / part / "a_instance.png")
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), shade + 9, np.uint8)).save(tmp_path / part / "b.png")
    return tmp_path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """The first pictures of the shipped blood cells."""
    whole = Path(build_dataset("voc", "train").source[0]).parents[2]
    for part in ("train", "test"):
        names = (whole / "ImageSets" / "Main" / f"{part}.txt").read_text().split()[:2]
        for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names:
                shutil.copy(whole / folder / f"{name}{suffix}", tmp_path / folder)
        (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names))
    return tmp_path


def of_folder(name: str, split: str, root: Path | None = None) -> ObjectImages:
    found = build_dataset(name, split, root=root)
    assert isinstance(found, ObjectImages)
    return found


def test_a_folder_of_coco_is_read(coco: Path) -> None:
    train, test = (of_folder("coco", split, coco) for split in ("train", "test"))
    assert train.object_classes == ["bolt", "nut"]  # in the order of their ids
    assert train.category_numbers == [3, 7]
    assert train.identities == [100, 101]
    assert train.objects.boxes.tolist() == [[4, 5, 16, 15], [20, 2, 28, 22], [0, 20, 30, 30]]
    assert train.objects.labels.tolist() == [1, 0, 0]
    assert train.objects.ignored.tolist() == [False, False, True]
    assert train.objects.areas.tolist() == [120, 160, 300]
    assert train.objects.starts.tolist() == [0, 3, 3]  # a picture without objects is kept
    assert train.checksum != test.checksum
    swapped = train.subset([1, 0])
    assert swapped.objects.starts.tolist() == [0, 0, 3]
    assert swapped.identities == [101, 100]
    assert swapped.checksum != train.checksum


def test_answers_have_the_ids_of_the_file_of_the_test(coco: Path) -> None:
    content = coco_content("test")
    content["categories"] = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "washer"}]
    content["annotations"] = [{**content["annotations"][1], "category_id": 1}]
    (coco / "test.json").write_text(json.dumps(content))
    assert of_folder("coco", "test", coco).category_numbers == [1, 3]  # nuts are not in the file: a free number
    assert of_folder("coco", "train", coco).category_numbers == [3, 7]


@pytest.mark.parametrize(
    ("annotations", "folder", "parts"),
    [
        ("annotations/instances_{}.json", "{}", ("train2017", "val2017", "test2017")),
        ("{}/_annotations.coco.json", "{}", ("train", "valid", "test")),
        ("annotations/{}.json", "images/{}", ("train", "val", "test")),
    ],
)
def test_other_layouts_of_coco(
    coco: Path,
    tmp_path: Path,
    annotations: str,
    folder: str,
    parts: tuple[str, str, str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a test part, val is the test, and that is said; beside one, it is the validation part."""

    def place(source: str, part: str) -> None:
        shutil.copytree(coco / source, root / folder.format(part), dirs_exist_ok=True)
        path = root / annotations.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(coco / f"{source}.json", path)

    root, (train, val, test) = tmp_path / "other", parts
    place("train", train)
    place("test", val)
    assert of_folder("coco", "train", root).validation is None
    assert of_folder("coco", "test", root).identities == [200, 201]
    assert caplog.messages == [f"{root}: no test split, val is taken for it"]
    main(["doctor", str(root), "--name", "coco"])
    assert "no test split, val is taken for it" in " ".join(capsys.readouterr().out.split())
    place("test", test)
    assert main(["doctor", str(root), "--name", "coco"]) == 1
    assert "no test split" not in capsys.readouterr().out
    whole = of_folder("coco", "train", root)
    assert whole.validation is not None
    assert whole.validation.tolist() == [False, False, True, True]
    assert whole.identities == [100, 101, 200, 201]


def test_the_shipped_photographs_are_read() -> None:
    train, test = (of_folder("voc", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (32, 16)
    assert train.object_classes == ["Platelets", "RBC", "WBC"]
    assert train.objects.labels.bincount().tolist() == [49, 516, 36]
    assert train.objects.boxes[0].tolist() == [67, 314, 286, 480]  # VOC counts from 1, and the last pixel is inside
    assert train.objects.outlines is None
    assert train.fetch(torch.tensor([0]), 64, 3).shape == (1, 3, 64, 64)


def test_difficult_objects_are_ignored(voc: Path) -> None:
    path = voc / "Annotations" / "BloodImage_00001.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert of_folder("voc", "train", voc).objects.ignored.tolist().count(True) == 1


def test_the_test_is_left_out_of_trainval(
    voc: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where ``trainval.txt`` and ``val.txt`` are all; a name may have a space."""
    lists = voc / "ImageSets" / "Main"
    train, test = ((lists / f"{part}.txt").read_text().split() for part in ("train", "test"))
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (voc / folder / f"{train[0]}{suffix}").rename(voc / folder / f"a cell{suffix}")
    (lists / "trainval.txt").write_text("\n".join(["a cell", f"{train[1]}  -1", *test]))
    (lists / "test.txt").rename(lists / "val.txt")
    (lists / "train.txt").unlink()
    assert of_folder("voc", "train", voc).names == ["a cell", train[1]]
    assert not caplog.messages
    assert of_folder("voc", "test", voc).names == test
    assert caplog.messages == [f"{voc}: no test split, val is taken for it"]
    main(["doctor", str(voc), "--name", "voc"])
    assert "no test split, val is taken for it" in " ".join(capsys.readouterr().out.split())


def edited(change: Callable[[Content], Any]) -> Callable[[Path], Any]:
    def edit(root: Path) -> None:
        content = coco_content("train")
        change(content)
        (root / "train.json").write_text(json.dumps(content))

    return edit


def replaced(old: str, new: str) -> Callable[[Path], Any]:
    def edit(root: Path) -> None:
        path = root / "Annotations" / "BloodImage_00001.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


WRONG_COCO: dict[str, tuple[Callable[[Path], Any], str]] = {
    "outside": (
        edited(lambda c: c["annotations"][0].update(bbox=[50, 5, 4, 4])),
        r"train\.json: object 1 of a\.png: the box from \(50, 5\) to \(54, 9\) lies outside its picture of 40 x 30",
    ),
    "negative": (
        edited(lambda c: c["annotations"][0].update(bbox=[4, 5, -2, 4])),
        r"object 1 of a\.png: the box from \(4, 5\) to \(2, 9\) has a negative size",
    ),
    "no numbers": (
        edited(lambda c: c["annotations"][0].update(bbox=[4, 5, "6", 4])),
        r"object 1 of a\.png: box \[4, 5, '6', 4\] is not four finite numbers",
    ),
    "no box": (
        edited(lambda c: c["annotations"][0].pop("bbox")),
        r"needs a bbox \[left, top, width, height\], not None",
    ),
    "unknown class": (
        edited(lambda c: c["annotations"][0].update(category_id=9)),
        r"train\.json: object 1 has the category 9, which is not listed",
    ),
    "no class": (
        edited(lambda c: c["annotations"][0].update(category_id=[1])),
        r"object 1 has the category \[1\], which is not listed",
    ),
    "a number beyond floats": (
        edited(lambda c: c["annotations"][0].update(bbox=[4.5, 5, 10**400, 4])),
        r"object 1 of a\.png: box \[4\.5, 5, 1000.*, 4\] is not four finite numbers",
    ),
    "two files of a part": (
        lambda root: shutil.copy(root / "train.json", root / "train" / "_annotations.coco.json"),
        r"the part train is both train\.json and train/_annotations\.coco\.json; keep one of them",
    ),
    "unknown picture": (
        edited(lambda c: c["annotations"][0].update(image_id=9)),
        r"train\.json: object 1 belongs to the picture 9, which is not listed",
    ),
    "two objects": (
        edited(lambda c: c["annotations"][1].update(id=1)),
        r"2 objects of the id are 1; each needs its own",
    ),
    "two pictures": (edited(lambda c: c["images"][1].update(id=100)), r"2 pictures of the id are 100"),
    "two categories": (
        edited(lambda c: c["categories"][1].update(id=7)),
        r"two categories have the id 7 \(nut, bolt\)",
    ),
    "missing picture": (
        lambda root: (root / "train" / "b.png").unlink(),
        r"train\.json: 1 of 2 pictures are missing, first .*b\.png; copy them there, or remove their annotations",
    ),
    "broken JSON": (
        lambda root: (root / "train.json").write_text('{"images": ['),
        r"train\.json: not readable JSON \(.*\); obtain it again",
    ),
    "another JSON": (
        lambda root: (root / "train.json").write_text('{"images": []}'),
        r"train\.json: has no list 'annotations' of objects, so it is not in COCO's form",
    ),
    "no size": (edited(lambda c: c["images"][0].pop("width")), r"picture a\.png needs width and height in pixels"),
    "no objects": (edited(lambda c: c["annotations"].clear()), r"train\.json: holds no object; add annotations"),
    "no test": (
        lambda root: (root / "test.json").unlink(),
        r"no annotations of the part test: test\.json, annotations/",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG_COCO.values(), ids=list(WRONG_COCO))
def test_wrong_annotations_of_coco(coco: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(coco)
    with pytest.raises(DataError, match=message) as error:
        of_folder("coco", "train", coco)
    assert "\n" not in str(error.value)


WRONG_VOC: dict[str, tuple[Callable[[Path], Any], str]] = {
    "outside": (
        replaced("<xmin>68</xmin>", "<xmin>700</xmin>"),
        r"BloodImage_00001\.xml: object 1 \(WBC\): the box from \(700, .* has a negative size",
    ),
    "no number": (
        replaced("<xmin>68</xmin>", "<xmin>?</xmin>"),
        r"object 1 \(WBC\): bndbox needs xmin, ymin, xmax, ymax",
    ),
    "no finite number": (
        replaced("<xmin>68</xmin>", "<xmin>nan</xmin>"),
        r"object 1 \(WBC\): bndbox needs xmin, ymin, xmax, ymax",
    ),
    "no finite size": (replaced("<width>640", "<width>inf"), r"needs size/width and size/height in pixels"),
    "in two lists": (
        lambda root: (root / "ImageSets" / "Main" / "test.txt").write_text("BloodImage_00001"),
        r"test\.txt: lists BloodImage_00001, and so does train\.txt; leave it in one of them",
    ),
    "no name": (replaced("<name>WBC</name>", ""), r"object 1 has no name"),
    "no size": (replaced("<width>640</width>", ""), r"needs size/width and size/height in pixels"),
    "broken XML": (replaced("</annotation>", ""), r"BloodImage_00001\.xml: not readable XML \(.*\); obtain it again"),
    "missing XML": (
        lambda root: (root / "Annotations" / "BloodImage_00001.xml").unlink(),
        r"BloodImage_00001\.xml: is missing, but .*train\.txt lists BloodImage_00001",
    ),
    "missing picture": (
        lambda root: (root / "JPEGImages" / "BloodImage_00001.jpg").unlink(),
        r"train\.txt: 1 of 2 pictures are missing, first .*BloodImage_00001\.jpg",
    ),
    "listed twice": (
        lambda root: (root / "ImageSets" / "Main" / "train.txt").write_text("BloodImage_00001\nBloodImage_00001"),
        r"train\.txt: 2 lines are 'BloodImage_00001'; each needs its own",
    ),
    "no list": (
        lambda root: (root / "ImageSets" / "Main" / "train.txt").unlink(),
        r"Main: train\.txt or trainval\.txt is missing",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG_VOC.values(), ids=list(WRONG_VOC))
def test_wrong_annotations_of_voc(voc: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(voc)
    with pytest.raises(DataError, match=message) as error:
        of_folder("voc", "train", voc)
    assert "\n" not in str(error.value)


def test_a_class_of_the_test_alone_is_refused(voc: Path) -> None:
    path = next(
        voc / "Annotations" / f"{name}.xml" for name in (voc / "ImageSets" / "Main" / "test.txt").read_text().split()
    )
    path.write_text(path.read_text().replace("<name>RBC", "<name>Alien", 1))
    with pytest.raises(DataError, match=r"holds an object of the class 'Alien', which the training part does not have"):
        of_folder("voc", "test", voc)


def test_boxes_that_reach_out_are_cut_and_empty_ones_left_out(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: Content) -> None:
        content["annotations"][0]["bbox"] = [30, 5, 20, 10]
        content["annotations"][1]["bbox"] = [20, 2, 0, 20]

    edited(change)(coco)
    assert of_folder("coco", "train", coco).objects.boxes[0].tolist() == [30, 5, 40, 15]
    assert "object 1 of a.png: a box reaches beyond its picture and is cut" in caplog.text
    assert "object 2 of a.png: a box without area is left out" in caplog.text


def test_a_picture_of_another_size_than_its_annotations_is_refused(coco: Path) -> None:
    Image.new("RGB", (20, 15)).save(coco / "train" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 20 x 15 pixels, but its annotations are of 40 x 30"):
        of_folder("coco", "train", coco).fetch(torch.tensor([0]), 32, 3)


def test_training_says_that_pictures_are_in_two_parts(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = detection_config(coco)
    build_splits(config)
    assert "several parts" not in caplog.text
    shutil.copy(coco / "train" / "a.png", coco / "test" / "b.png")
    build_splits(config)
    assert re.search(r"1 picture is in several parts .* \S+train/a\.png, the same as \S+test/b\.png", caplog.text)


def test_what_is_kept_of_a_picture_of_instances_is_of_that_state(coco: Path) -> None:
    outline = Instance(coco / "train" / "a_instance.png", 1)
    before = drawn([outline], WIDTH, HEIGHT, "a"), described(outline)
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[:2] = 1
    Image.fromarray(numbers).save(outline.path)
    after = drawn([outline], WIDTH, HEIGHT, "a"), described(outline)
    assert after[0].sum() == 2 * WIDTH != before[0].sum()
    assert after[1] != before[1]


def test_doctor_lists_all_of_it(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(content: Content) -> None:
        content["annotations"][0]["category_id"] = 9
        content["annotations"][1]["bbox"] = [50, 2, 4, 4]
        content["annotations"][2]["instance"] = 9

    assert main(["doctor", str(coco), "--name", "coco"]) == 1  # few objects, and nothing else
    assert "classes with fewer than 5 training objects: bolt (2), nut (1)" in capsys.readouterr().out
    edited(change)(coco)
    Image.new("RGB", (20, 15)).save(coco / "train" / "b.png")
    shutil.copy(coco / "train" / "a.png", coco / "test" / "a.png")
    whole = (coco / "test" / "b.png").read_bytes()
    (coco / "test" / "b.png").write_bytes(whole[:-30])
    assert main(["doctor", str(coco), "--name", "coco"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    for line in (
        "has the category 9, which is not listed",
        "lies outside its picture of 40 x 30",
        "b.png: is 20 x 15 pixels, but its annotations are of 40 x 30",
        "the same picture in training and test: a.png, a.png; keep it in one of them",
        "1 of 2 training pictures have no object, first b.png",
        "test/b.png: not a readable image",
        "a_instance.png: no pixel has the number 9 of an object of",
    ):
        assert line in said
    for flags in (["--variant", "2012"], ["--unlabelled"]):
        assert main(["doctor", "--name", "voc", *flags]) == 2
        assert f"error: {' '.join(flags)}: " in capsys.readouterr().err
    for flag, value in (("--groups", "8"), ("--cache-dir", "kept"), ("--stored-points", "9"), ("--workers", "1")):
        assert main(["doctor", "--name", "voc", flag, value]) == 2
        assert f"error: {flag}: belongs to" in capsys.readouterr().err
    assert main(["doctor", "--name", "voc"]) == 0


def detection_config(root: Path | None = None, *, name: str = "coco", **data: Any) -> Config:
    return Config.of(
        {
            "task": {"name": "detection", "channels": 16, "num_classes": 2 if name == "coco" else 3},
            "backbone": {"name": "vit", "dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 64},
            "method": {"name": "lora", "rank": 2},
            "data": {"name": name, "root": None if root is None else str(root), **data},
        }
    )


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("augment", [[], [{"flip": {"p": 1.0}}], ["shift"], [{"flip": {"p": 1.0}}, "scale_crop"]])
def test_boxes_and_masks_follow_their_picture(coco: Path, augment: list[Any], resize: str) -> None:
    """The red pixels are those of the first box, and of the first mask."""
    config = detection_config(coco, augment=augment, resize=resize, mean=[0.0] * 3, std=[1.0] * 3)
    task, data = build_task(config), of_folder("coco", "train", coco)
    assert isinstance(task, Detection)
    batches = Batches(build_inputs(config), data, task.targets(data), torch.device("cpu"))
    for seed in range(3):
        batch = batches.training(torch.tensor([1, 0]), torch.Generator().manual_seed(seed))
        nothing, found = task.placed(batch, masks=True)
        assert len(nothing.labels) == 0
        assert found.masks is not None
        for label, channel in ((1, 0), (0, 1)):
            red = batch.inputs[1, channel] > 0.7
            place = (found.labels == label).nonzero().flatten().tolist()
            if not place:  # cut off
                assert red.sum() <= 64
                continue
            left, top, right, bottom = found.boxes[place[0]].tolist()
            rows, columns = red.any(dim=1).nonzero().flatten(), red.any(dim=0).nonzero().flatten()
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if "shift" not in augment and "scale_crop" not in augment:  # whose repeated edges are red, too
                assert [left, top, right, bottom] == pytest.approx([float(edge) for edge in edges], abs=1.5)
            mask = found.masks[place[0]].bool()
            assert (mask & ~red).sum() <= 0.15 * mask.sum() + 8  # interpolated at its edge


def test_the_task_is_known_and_refuses_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "detection" in TASKS
    if missing("torchvision", "dense2d") is None:
        pytest.skip("torchvision is installed")
    with pytest.raises(ConfigError, match=r"^the task detection needs .*torchvision.*\(the extra dense2d\)$"):
        build_model(detection_config(name="voc"))


def test_what_does_not_fit_the_task_is_said(coco: Path) -> None:
    config = detection_config(name="voc")
    with pytest.raises(
        ConfigError, match=r"data\.name: digits has no boxes of objects; for detection choose from coco"
    ):
        config.replaced(data={"name": "digits"})
    with pytest.raises(ConfigError, match=r"task\.num_classes=3, but coco has 2 classes of objects"):
        build_task(detection_config(coco).replaced(task={"num_classes": 3})).check(of_folder("coco", "train", coco))
    masked = config.replaced(task={"head": "mask_rcnn"})
    with pytest.raises(
        ConfigError,
        match=r"learns masks, but 601 of 601 objects of .* have boxes alone, first in Blood",
    ):
        build_task(masked).check(of_folder("voc", "train"))
    classes = {**config.dump(), "task": {"name": "detection"}}
    assert Config.of(classes).dump()["task"]["num_classes"] == 3
    with pytest.raises(ConfigError, match=r"its pictures hold objects and have no class of their own; set task\.name"):
        Config.of({key: value for key, value in config.dump().items() if key != "task"} | {"head": {}})
