"""Detection under adapted backbones of timm: every method takes a step, and what is found is where it is said to be."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx import jobs
from pointadapterx.build import build_model, build_splits
from pointadapterx.commands.main import main
from pointadapterx.config import Config, read_config
from pointadapterx.counting import count_model
from pointadapterx.datasets import build_dataset, build_inputs
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch, Batches
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.objects import Objects
from pointadapterx.datasets.outlines import drawn, encoded
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.peft import METHODS
from pointadapterx.tasks import Detection, build_task
from pointadapterx.tasks.detection_heads import COLUMNS, HEADS, MASK, WORDS, Anchors, packed, unpacked
from pointadapterx.tasks.detection_metrics import RECALLS, Curve, _evaluated, _truth, found_in, measure, pasted
from pointadapterx.tasks.upernet import RESCALES, Level, strides_of
from tests.conftest import ROOT

pytestmark = pytest.mark.timm

SIDE, WIDTH, HEIGHT = 64, 48, 36
CATEGORIES = [{"id": 4, "name": "nut"}, {"id": 2, "name": "bolt"}]
SWIN = {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [2, 2, 4, 4], "window_size": 4}
LIMITS = {"channels": 16, "detections": 20}


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    for package in ("timm", "torchvision", "pycocotools"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed here; make test-foreign runs this")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four test pictures with one to three rectangles in the colours of their classes."""
    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        (root / part).mkdir()
        images, annotations = [], []
        for number in range(count):
            pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            instances = np.zeros((HEIGHT, WIDTH), np.uint8)
            for instance in range(1, 2 + number % 3):
                (left, top), (width, height) = rng.integers(0, (32, 20)), rng.integers(8, 17, 2)
                kind = int(rng.integers(2))
                box = [int(value) for value in (left, top, min(width, WIDTH - left), min(height, HEIGHT - top))]
                inside = slice(box[1], box[1] + box[3]), slice(box[0], box[0] + box[2])
                pixels[inside] = (255, 0, 0) if kind == 0 else (0, 255, 0)
                instances[inside] = instance
                one = {"id": len(annotations), "image_id": number + 10, "category_id": (4, 2)[kind], "bbox": box}
                annotations.append(one | {"instance": instance, "iscrowd": 0, "area": box[2] * box[3]})
            Image.fromarray(pixels).save(root / part / f"{number}.png")
            Image.fromarray(instances).save(root / part / f"{number}_instance.png")
            images.append({"id": number + 10, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / f"{part}.json").write_text(json.dumps(content))
    return root


def config_of(method: str, head: str, root: Path, **sections: Any) -> Config:
    fields = METHODS[method].Options.model_fields
    small = {"rank": 4, "num_heads": 1, "num_experts": 2, "prompts": False}
    config: dict[str, Any] = {
        "task": {"name": "detection", "head": head, **LIMITS},
        "backbone": {
            "name": "timm",
            "model": "swin_tiny_patch4_window7_224",
            "architecture": SWIN,
            "image_size": SIDE,
            "weights": None,
        },
        "method": {"name": method, **{key: value for key, value in small.items() if key in fields}},
        "data": {"name": "coco", "root": str(root), "augment": "flip", "resize": "letterbox"},
        "train": {"epochs": 1, "warmup_epochs": 0, "batch_size": 4, "lr": 1e-3, "precision": "fp32"},
        "eval": {"protocol": "last", "batch_size": 3},
    }
    for section, update in sections.items():
        config[section] = {**config[section], **update}
    return Config.of(config, "test")


def batch_of(config: Config, count: int = 2) -> Batch:
    task, train = build_task(config), build_splits(config).train
    batches = Batches(build_inputs(config), train, task.targets(train), torch.device("cpu"), staged=True)
    return batches.training(torch.arange(count), torch.Generator().manual_seed(0))


REFUSED = {
    "idpt": "idpt inserts prompts behind a class token, which backbone timm does not have",
    "noah": "noah needs a class token, which backbone timm does not have",
    "stag": "method stag looks for neighbours of each patch",
    "vpt": "vpt inserts prompts behind a class token, which backbone timm does not have",
}
"""Methods that a Swin of timm does not take, and what is said."""


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_takes_a_step(name: str, head: str, data: Path) -> None:
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]) as error:
            build_model(config_of(name, head, data))
        assert len(str(error.value).removeprefix("test: 1 problem in the config\n").splitlines()) == 1
        return
    config = config_of(name, head, data)
    model, task = build_model(config).train(), build_task(config)
    torch.manual_seed(0)
    loss, sums = task.loss(model, batch_of(config), torch.Generator())
    loss.backward()
    assert torch.isfinite(loss)
    assert set(HEADS[head].losses) < set(sums)
    lacking = [key for key, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert lacking == []


def test_a_step_of_mask_rcnn_on_swin_tiny(data: Path) -> None:
    """The published size of both, on small pictures."""
    config = config_of("lora", "mask_rcnn", data, backbone={"architecture": {"window_size": 4}}, task={"channels": 256})
    model, task = build_model(config).train(), build_task(config)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    batch, losses = batch_of(config), []
    for _ in range(3):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss, _ = task.loss(model, batch, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]


@pytest.mark.parametrize("backbone", ["vit", "patches of 14"])
@pytest.mark.parametrize("head", list(HEADS))
def test_a_plain_transformer_gets_a_pyramid(head: str, backbone: str, data: Path) -> None:
    side, patch = (64, 16) if backbone == "vit" else (56, 14)
    plain = {"name": "vit", "dim": 24, "depth": 3, "num_heads": 2, "patch_size": patch, "image_size": side}
    sections = config_of("lora", head, data).dump()
    config = Config.of({**sections, "backbone": plain})
    model, task = build_model(config), build_task(config)
    loss, _ = task.loss(model.train(), batch_of(config), torch.Generator())
    assert torch.isfinite(loss)
    found = task.outputs(model.eval(), batch_of(config))
    assert found.shape == (2, 20, COLUMNS + WORDS * (head == "mask_rcnn"))
    assert count_model(config).costs.backward > 0


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask R-CNN after a few steps, which finds something everywhere."""
    config = config_of("full", "mask_rcnn", data, task={"score_threshold": 0.0}, train={"epochs": 3})
    return jobs.train(config, "objects", tmp_path_factory.mktemp("run") / "run", make_accelerator("fp32"))


def test_its_results_are_those_of_coco(run: Path, data: Path) -> None:
    """What is written beside a test, read by pycocotools with the files' own truth, has the AP that was measured."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    measured = json.loads((run / "metrics.json").read_text())["test"]
    truth = COCO(str(data / "test.json"))
    for one in truth.dataset["annotations"]:
        instances = np.array(Image.open(data / "test" / f"{one['image_id'] - 10}_instance.png")) == one["instance"]
        one["segmentation"] = mask.encode(np.asfortranarray(instances.astype(np.uint8)))
        one["area"] = float(instances.sum())
    results = truth.loadRes(str(run / "predictions.json"))
    for kind, expected in (("bbox", measured), ("segm", measured["masks"])):
        evaluation = COCOeval(truth, results, kind)
        evaluation.params.maxDets = [1, 10, 100]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        wanted = [expected["ap"] or 0.0, expected["ap50"] or 0.0, expected["ap75"] or 0.0]
        assert 100 * evaluation.stats[:3] == pytest.approx(wanted, abs=0.05)
    assert measured["found"] == len(results.dataset["annotations"]) > 0
    assert not measured["intervals"]  # of four pictures


def test_its_commands(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = jobs.test(run, ["data.augment=[flip, shift]"], 2, False, tmp_path / "tested")
    assert report["test"]["ap"] == json.loads((run / "metrics.json").read_text())["test"]["ap"]
    assert report["vote"]["ap"]["votes"]
    pictures = sorted(map(str, (data / "test").glob("?.png")))
    command = ["predict", str(run), *pictures[:2], str(tmp_path / "none.png"), "--each", str(tmp_path / "each")]
    assert main([*command, "--output", str(tmp_path / "found.jsonl")]) == 3
    first, _, failed = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    assert failed["error"].startswith(f"{tmp_path / 'none.png'}: ")
    written = json.loads((run / "predictions.json").read_text())
    own = [one for one in written if one["image_id"] == 10]
    assert [one["score"] for one in first["objects"]] == pytest.approx([one["score"] for one in own], abs=1e-4)
    for one, result in zip(first["objects"], own, strict=True):
        left, top, width, height = result["bbox"]
        assert one["box"] == pytest.approx([left, top, left + width, top + height], abs=0.05)
        assert one["class"] == {4: "nut", 2: "bolt"}[result["category_id"]]
        assert one["mask"]["size"] == [HEIGHT, WIDTH]
    assert Image.open(tmp_path / "each" / "0.png").size == (WIDTH, HEIGHT)
    assert main([*command, "--kind", "csv", "--output", str(tmp_path / "found.csv")]) == 3
    assert (tmp_path / "each" / "1.csv").read_text().startswith("class,score,left,top,right,bottom")
    assert main(["export", str(run / "adapter.safetensors"), str(tmp_path / "model.pt2")]) == 2
    assert "the task detection cannot be exported: its answers differ in number" in capsys.readouterr().err


def test_its_report_shows_pictures(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("objects, ") >= 4
    assert "95 % interval over pictures or scenes" in page
    assert main(["visualize", str(run), "--picture", "objects", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "objects.png").is_file()


@pytest.mark.parametrize("name", ["blood_retinanet", "views_mask_rcnn"])
def test_shipped_configs(name: str, tmp_path: Path) -> None:
    """They load as they are, and the first one trains on what is shipped."""
    config = read_config(ROOT / "cfgs" / f"{name}.yaml")
    assert Config.of(config.dump()) == config
    if name == "blood_retinanet":
        small = [f"backbone.architecture={json.dumps(SWIN)}", f"backbone.image_size={SIDE}", "task.channels=16"]
        few = ["train.epochs=1", "train.warmup_epochs=0", "data.train_size=8"]
        short = read_config(ROOT / "cfgs" / f"{name}.yaml", [*small, *few])
        run = jobs.train(short, name, tmp_path / "run", make_accelerator("fp32"))
        assert json.loads((run / "metrics.json").read_text())["test"]["objects"] == 251


def shaken(objects: Objects, noise: float) -> torch.Tensor:
    """Detections of all objects, twice, moved by some pixels, with random scores."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(len(objects), 60, COLUMNS)
    rows[..., 5] = -1
    for row, (boxes, labels) in enumerate(
        zip(objects.split(objects.boxes), objects.split(objects.labels), strict=True)
    ):
        both = torch.cat([boxes, boxes])
        both = both + noise * torch.randn(both.shape, generator=generator)
        scores = torch.rand(len(both), generator=generator)
        rows[row, : len(both)] = torch.cat([both, scores[:, None], labels.repeat(2)[:, None].float()], dim=1)
    return rows


def shipped() -> tuple[Objects, list[str]]:
    found = build_dataset("voc", "test")
    assert isinstance(found, ObjectImages)
    return found.objects, found.object_classes


def test_resampled_curves_are_those_of_coco() -> None:
    """With every picture once they give pycocotools' AP; the interval holds it."""
    objects, classes = shipped()
    rows = shaken(objects, 6.0)
    metrics = measure(rows, objects, classes)
    sizes = [(width, height) for width, height in objects.sizes.tolist()]
    found = [found_in(row, size) for row, size in zip(rows, sizes, strict=True)]
    evaluated = _evaluated(found, list(_truth(objects, False)), sizes, classes, "bbox")
    curves = [Curve.of(evaluated, number) for number in range(len(classes))]
    values = np.stack([curve.ap(np.ones((1, len(objects)))) for curve in curves if curve is not None])
    assert 100 * values.mean() == pytest.approx(metrics["ap"], abs=1e-9)
    assert len(RECALLS) == 101
    low, high = metrics["intervals"]["ap"]
    assert low < metrics["ap"] < high
    assert 10 < metrics["voc_ap50"] < 100


def test_what_is_right_is_100_and_what_is_ignored_costs_nothing() -> None:
    objects, classes = shipped()
    rows = torch.zeros(len(objects), 60, COLUMNS)
    rows[..., 5] = -1
    for row, (boxes, labels) in enumerate(
        zip(objects.split(objects.boxes), objects.split(objects.labels), strict=True)
    ):
        rows[row, : len(boxes)] = torch.cat([boxes, torch.ones(len(boxes), 1), labels[:, None].float()], dim=1)
    ignored = torch.zeros_like(objects.ignored)
    ignored[::3] = True
    for known in (objects.ignored, ignored):
        metrics = measure(rows, replace(objects, ignored=known), classes)
        assert [metrics[key] for key in ("ap", "ap50", "ap75", "voc_ap50")] == pytest.approx([100.0] * 4)
    nothing = rows.clone()
    nothing[..., 5] = -1
    assert measure(nothing, objects, classes)["ap"] == 0.0


def one_class(boxes: list[list[float]], **more: Any) -> tuple[torch.Tensor, Objects]:
    """All found, surer the earlier, in a picture of 2000 x 200."""
    count = len(boxes)
    objects = Objects.of([boxes], [[0] * count], [[False] * count], [(2000, 200)], **more)
    scores = torch.linspace(0.9, 0.5, count)[:, None]
    return torch.cat([torch.tensor(boxes), scores, torch.zeros(count, 1)], dim=1)[None], objects


def test_scores_are_cocos_by_area_limit_and_scene() -> None:
    triangle = {"outlines": [[[[0, 0, 100, 0, 0, 100]]]]}
    for more, size in ((triangle, "medium"), ({"areas": [[500.0]]}, "small"), ({}, "large")):
        sizes = measure(*one_class([[0.0, 0, 100, 100]], **more), ["a"])["sizes"]
        assert {name for name, value in sizes.items() if value is not None} == {size}
    row, objects = one_class([[12.0 * i, 0, 12 * i + 8, 8] for i in range(150)])
    assert measure(row, objects, ["a"])["ap50"] == pytest.approx(100 * 67 / 101)  # recall reaches 100 of 150
    five, rows = objects[torch.zeros(5, dtype=torch.int64)], row.repeat(5, 1, 1)
    assert measure(rows, five, ["a"])["intervals"]
    assert not measure(rows, five, ["a"], torch.tensor([1, 2, 3, 4, 4]))["intervals"]  # of four scenes


@pytest.mark.parametrize(
    "outline",
    [
        *({"size": [30, 40], "counts": counts} for counts in ("zzzz", "0" * 50, [100, 2000], [5, -3, 10], [5, 5])),
        *({"size": [40, 30], "counts": [1200]}, [[1, 1, 5, 1]], [[1, 1, 5, 1, float("nan"), 3]]),
    ],
)
def test_outlines_that_are_none_are_refused(outline: Any) -> None:
    with pytest.raises(DataError, match=r"^it: not a readable outline"):
        drawn([outline], 40, 30, "it")
    whole = (np.random.default_rng(0).random((30, 40)) > 0.5).astype(np.uint8)
    assert np.array_equal(drawn([encoded(whole)], 40, 30, "it")[0], whole)


def test_strides_are_those_of_the_places_and_not_of_the_side() -> None:
    """Pooling makes 7 places of 15, merging 8."""
    plain = [Level(0, 8, 15, rescale, False) for rescale in RESCALES]
    assert strides_of(plain, 210) == [3.5, 7, 14, 28]
    stages = [Level(0, 8, side, 1.0, False) for side in (60, 30, 15, 8)]
    assert strides_of(stages, 240) == [4, 8, 16, 32]
    levels = [torch.zeros(1, 1, side, side) for side in (60, 30, 15, 7, 4)]
    (boxes,) = Anchors([1.0], strides_of(plain, 210))(SimpleNamespace(image_sizes=[(210, 210)]), levels)
    assert boxes[-1].view(2, 2).mean(dim=0).tolist() == [3.5 * 56] * 2


def test_masks_are_pasted_as_torchvision_pastes_them() -> None:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    masks = torch.nn.functional.interpolate(torch.rand(30, 1, 5, 5, generator=generator), (MASK, MASK), mode="bilinear")
    corners = torch.rand(30, 2, 2, generator=generator) * torch.tensor([320, 240])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    expected = paste_masks_in_image(masks, boxes, (240, 320))[:, 0] > 0.5
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))[:, 0]
    found = np.stack([pasted(mask, box, (320, 240)) for mask, box in zip(padded, boxes, strict=True)])
    assert np.array_equal(found.astype(bool), expected.numpy())
    assert (unpacked(packed(masks[:, 0])) - masks[:, 0]).abs().max() <= 0.5 / 255 + 1e-6


def test_a_vote_brings_copies_back_and_keeps_the_surest(data: Path) -> None:
    """A box that both copies find, one of them mirrored, is one box; its mask is turned back."""
    task = build_task(config_of("lora", "mask_rcnn", data))
    assert isinstance(task, Detection)
    mask = torch.zeros(MASK, MASK)
    mask[:, : MASK // 2] = 1.0
    box, mirrored = [4.0, 8.0, 24.0, 30.0], [SIDE - 24.0, 8.0, SIDE - 4.0, 30.0]

    def found(edges: list[float], score: float, inside: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(1, 20, COLUMNS + WORDS)
        rows[..., COLUMNS - 1] = -1
        rows[0, 0] = torch.cat([torch.tensor([*edges, score, 1.0]), packed(inside)])
        return rows

    outputs = [found(box, 0.6, mask), found(mirrored, 0.9, mask.flip(-1))]
    frames = [torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[-1.0, 0.0, 1.0, 0.0]])]
    batches = [build_batch(frame) for frame in frames]
    (merged,) = task.combine(outputs, batches)
    assert (merged[:, COLUMNS - 1] >= 0).sum() == 1
    assert merged[0, :COLUMNS].tolist() == pytest.approx([*box, 0.9, 1.0], abs=1e-4)
    assert torch.equal(unpacked(merged[0, COLUMNS:]), mask)


def build_batch(frame: torch.Tensor) -> Batch:
    return Batch(torch.empty(1, 3, SIDE, SIDE), Targets(), frame=frame)
