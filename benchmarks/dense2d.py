"""Tables of ``python -m benchmarks dense`` for pictures: Swin under heads that read all stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.dense import Row, main, table, training_job
from benchmarks.jobs import Job
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_method
from pointadapterx.engine.optim import build_optimizer
from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import BACKBONES, Backbone
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.optional import missing
from pointadapterx.peft import METHODS
from pointadapterx.sections import TrainConfig
from pointadapterx.tasks.detection_heads import HEADS as DETECTORS
from pointadapterx.tasks.detection_heads import DetectionHead, Objects, Settings
from pointadapterx.tasks.pixel_losses import Pixels
from pointadapterx.tasks.upernet import Levels, LightHead, PixelHead, UPerNet, levels_of

__all__ = ["main"]

METHODS_OF_ROWS = ("full", "linear", "lora", "adapter", "e3va", "e3va_x")
SIDE, CLASSES, OBJECTS = 224, 21, 4
SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
SWIN_L = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 7}
METHODS_OF_LARGE_ROWS = ("full", "linear", "e3va", "e3va_x")


class Means(Head):
    """The least head: a norm of each stage, and a linear layer on the mean of its tokens."""

    num_classes = CLASSES

    def __init__(self, info: FeatureInfo) -> None:
        super().__init__()
        levels = levels_of(info)
        self.blocks = tuple(level.block for level in levels)
        self.levels = Levels(levels)
        self.layers = nn.ModuleList(nn.Linear(level.width, CLASSES) for level in levels)

    def forward(self, features: Features) -> Tensor:
        """Features -> logits (B, classes)."""
        maps = zip(self.layers, self.levels.maps(features), strict=True)
        return torch.stack([layer(one.mean(dim=(2, 3))) for layer, one in maps]).sum(dim=0)


class Kind(NamedTuple):
    """A head and what it is trained with.

    Attributes:
        make: the head for features.
        criterion: output of the head and random targets -> loss.
        truth: targets of a batch of that size, also given to the model where they are objects.
    """

    make: Callable[[FeatureInfo], Head]
    criterion: Callable[[Tensor, Any], Tensor]
    truth: Callable[[Head, int], Any]


def _label(head: Head, size: int) -> Tensor:
    return torch.arange(size) % CLASSES


def _pixels(head: Head, size: int) -> Tensor:
    return torch.randint(CLASSES, (size, SIDE, SIDE))


def _objects(head: Head, size: int) -> Sequence[Objects]:
    assert isinstance(head, DetectionHead)
    found = []
    for _ in range(size):
        corner = SIDE / 2 * torch.rand(OBJECTS, 2)
        boxes = torch.cat([corner, corner + SIDE * (0.1 + 0.4 * torch.rand(OBJECTS, 2))], dim=1)
        masks = torch.zeros(OBJECTS, SIDE, SIDE, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        found.append(Objects(boxes, torch.randint(CLASSES, (OBJECTS,)), masks if head.has_masks else None))
    return found


def _first(losses: Tensor, truth: Any) -> Tensor:
    return losses[0]


def _segmentor(channels: int) -> Kind:
    return Kind(lambda info: UPerNet(levels_of(info), CLASSES, channels), _first, _pixels)


def _detector(name: str, channels: int = 256) -> Kind:
    settings = Settings(CLASSES, SIDE, channels, None, None, 0.05, 0.5, 100)
    return Kind(lambda info: DETECTORS[name](info, settings), lambda losses, truth: losses.sum(), _objects)


HEADS = {
    "stages": Kind(Means, F.cross_entropy, _label),
    "light": Kind(lambda info: LightHead(levels_of(info), CLASSES), _first, _pixels),
    "upernet_64": _segmentor(64),
    "upernet": _segmentor(512),
    "retinanet_128": _detector("retinanet", 128),
    "retinanet": _detector("retinanet"),
    "mask_rcnn": _detector("mask_rcnn"),
}


def make_backbone(size: Mapping[str, Any]) -> Backbone:
    """A Swin with random weights, the same each time: timm's, or transformers' where that is missing.

    Raises:
        ConfigError: if both are.
    """
    section: dict[str, Any] = {"name": "hf", "architecture": {**size, "patch_size": 4, "model_type": "swin"}}
    if missing("timm", "timm") is None:
        section = {"name": "timm", "model": "swin_tiny_patch4_window7_224", "architecture": dict(size)}
    kind: Any = BACKBONES[section["name"]]
    options = kind.Options.model_validate({**section, "weights": None, "image_size": SIDE}).completed()
    if options.options is None:
        raise ConfigError(options.problems[0][1])
    found: Backbone = kind(options.options)
    return found


def picture_job(method: str, head: str, backbone_size: Mapping[str, Any], batch_size: int, device: torch.device) -> Job:
    """Steps on random pictures with random targets; the method with its default options, and no drop path."""
    torch.manual_seed(0)
    backbone, kind = make_backbone(backbone_size), HEADS[head]
    options = METHODS[method].Options.model_validate({"name": method})
    model = AdaptedModel(backbone, build_method(options), kind.make(backbone.feature_info))
    model.forget_backbone()
    model = model.to(device).train()
    images = torch.randn(batch_size, 3, SIDE, SIDE, device=device)
    truth = kind.truth(model.head, batch_size)
    truth = truth.to(device) if isinstance(truth, Tensor) else [_moved(one, device) for one in truth]
    given = Pixels(truth, F.cross_entropy) if isinstance(model.head, PixelHead) else truth

    def loss() -> Tensor:
        torch.manual_seed(0)  # of the regions that a detector draws
        output, auxiliary = model(images, given)
        found = kind.criterion(output, truth)
        return found if auxiliary is None else found + auxiliary

    return training_job(method, model, build_optimizer(model, TrainConfig(lr=1e-5)), loss)


def _moved(one: Objects, device: torch.device) -> Objects:
    return Objects(*(None if part is None else part.to(device) for part in one))


def picture_rows(head: str) -> list[Row]:
    """One for each method on Swin-T."""
    return [Row(method, partial(picture_job, method, head, SWIN_T)) for method in METHODS_OF_ROWS]


def large_rows(head: str) -> list[Row]:
    """One for each of some methods on Swin-L."""
    return [Row(method, partial(picture_job, method, head, SWIN_L)) for method in METHODS_OF_LARGE_ROWS]


TITLES = {
    "stages": "the least head: what backbone and method cost by themselves",
    "light": "segmentation, light head (128 channels)",
    "upernet_64": "segmentation, UPerNet of 64 channels, as in cfgs/views_upernet.yaml",
    "upernet": "segmentation, UPerNet as published (512 channels)",
    "retinanet_128": "detection, RetinaNet of 128 channels, as in cfgs/blood_retinanet.yaml",
    "retinanet": "detection, RetinaNet as published (256 channels)",
    "mask_rcnn": "detection, Mask R-CNN",
}
for _name, _title in TITLES.items():
    table(f"swin_{_name}", f"Swin-T, pictures of {SIDE} x {SIDE}, {_title}")(partial(picture_rows, _name))
for _name in ("upernet", "retinanet"):
    title = f"Swin-L, pictures of {SIDE} x {SIDE}, {TITLES[_name]}"
    table(f"large_{_name}", title, large=True)(partial(large_rows, _name))
