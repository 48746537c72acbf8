"""Heads that find objects in pictures: a feature pyramid under torchvision's Mask R-CNN, Faster R-CNN or RetinaNet."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.datasets.outlines import EXTRA
from pointadapterx.errors import ConfigError
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.optional import need
from pointadapterx.tasks.focal_loss import focal_loss
from pointadapterx.tasks.regions import Again, BoxHead, Later
from pointadapterx.tasks.upernet import Level, Levels, levels_of, strides_of

RATIOS = (0.5, 1.0, 2.0)  # height by width of anchors
OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # sizes of RetinaNet's anchors on one level
FINEST = 8  # stride in pixels of RetinaNet's finest level, or the next coarser one that there is
REGIONS, INSIDE = 512, 128  # of a picture in a training step of R-CNN, and those of objects among them
POOLED, OF_MASK, MASK = 7, 14, 28  # sides of what is pooled of a region for box and mask, and of a mask
COLUMNS = 6
"""Numbers of a detection: left, top, right, bottom, score and class; the class of an empty row is -1."""
PACKED = 3  # probabilities of 8 bits in one number of 24 bits, which float32 holds exactly
WORDS = math.ceil(MASK * MASK / PACKED)
"""Further numbers of a detection with a mask."""


class Objects(NamedTuple):
    """Objects of one picture as a model is given them in training.

    Attributes:
        boxes: (k, 4) in pixels of the model's picture.
        labels: (k,) int64, classes from 0.
        masks: (k, S, S), of 0 and 1; None where a head asks for none.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Settings(NamedTuple):
    """What is chosen of a head.

    Attributes:
        classes: their number.
        side: of the model's pictures, in pixels.
        channels: of the pyramid.
        anchors: size of the smallest anchor of a level by its stride; None: the head's own.
        blocks: whose tokens are read; None: the last of each stage.
        score: below which nothing is said.
        overlap: IoU above which the worse of two boxes of one class is dropped.
        most: detections of a picture.
    """

    classes: int
    side: int
    channels: int
    anchors: float | None
    blocks: Sequence[int] | None
    score: float
    overlap: float
    most: int


def detection_of_torchvision() -> Any:
    """The module ``torchvision.models.detection``.

    Raises:
        ConfigError: if it is not installed.
    """
    return need("torchvision.models.detection", "detection needs torchvision", EXTRA, ConfigError)


class Anchors(nn.Module):
    """Boxes about the middle of every place of every level.

    Args:
        sizes: of the anchors of one place by the level's stride, square roots of their areas.
        strides: of the levels in pixels; each further one has twice that of the one before.
    """

    def __init__(self, sizes: Sequence[float], strides: Sequence[float]) -> None:
        super().__init__()
        self.sizes, self.strides = tuple(sizes), tuple(strides)

    @property
    def count(self) -> int:
        """Of one place."""
        return len(self.sizes) * len(RATIOS)

    def forward(self, images: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        """Pictures and levels (B, C, h, w) -> for each picture (boxes of all levels, 4), as torchvision orders them."""
        further = (self.strides[-1] * 2**number for number in range(1, len(maps)))
        levels = [self._level(one, stride) for one, stride in zip(maps, (*self.strides, *further), strict=False)]
        return [torch.cat(levels)] * len(images.image_sizes)

    def _level(self, level: Tensor, stride: float) -> Tensor:
        options: dict[str, Any] = {"device": level.device, "dtype": torch.float32}
        ratios = torch.tensor(RATIOS, **options).sqrt()
        sizes = torch.tensor(self.sizes, **options) * stride
        tall, wide = (ratios[:, None] * sizes).flatten(), (sizes / ratios[:, None]).flatten()
        cells = torch.stack([-wide, -tall, wide, tall], dim=1) / 2
        y = (torch.arange(level.shape[-2], **options) + 0.5) * stride
        x = (torch.arange(level.shape[-1], **options) + 0.5) * stride
        y, x = (part.flatten() for part in torch.meshgrid(y, x, indexing="ij"))
        return (torch.stack([x, y, x, y], dim=1)[:, None] + cells).flatten(0, 1)


class DetectionHead(Head):
    """Tokens behind the last block of each stage, a norm each -> FPN -> detector.

    Where a picture's objects are given in training (``Features.condition``, a sequence of :class:`Objects`), the output
    is the detector's losses, as :attr:`losses` names them. Otherwise it is what is found: (B, most, :data:`COLUMNS`) in
    pixels of the model's picture, surest first, with :data:`WORDS` more columns for masks, see :func:`unpacked`.

    Args:
        info: of the backbone.
        settings: see the class.

    Attributes:
        losses: their names, in the order of the output in training.
        has_masks: whether it finds masks.

    Raises:
        ConfigError: if torchvision is not installed, or the backbone's patches lie on no grid.
    """

    losses: ClassVar[tuple[str, ...]]
    has_masks: ClassVar[bool] = False

    def __init__(self, info: FeatureInfo, settings: Settings) -> None:
        super().__init__()
        detection_of_torchvision()
        self.settings, self.side, self.width = settings, settings.side, info.width
        every = levels_of(info, settings.blocks)
        strides = strides_of(every, settings.side)
        chosen = self.chosen(list(zip(every, strides, strict=True)))
        levels, self.strides = [level for level, _ in chosen], [stride for _, stride in chosen]
        self.blocks = tuple(dict.fromkeys(level.block for level in levels))
        self.levels = Levels(levels)
        self.fpn = self.pyramid([level.width for level in levels])

    def chosen(self, levels: list[tuple[Level, float]]) -> list[tuple[Level, float]]:
        """The levels that the pyramid is built on, with their strides."""
        return levels

    @abstractmethod
    def pyramid(self, widths: list[int]) -> nn.Module:
        """The feature pyramid on maps of these widths."""

    @abstractmethod
    def learn(self, images: Any, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """Losses by name."""

    @abstractmethod
    def find(self, images: Any, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """``boxes``, ``scores``, ``labels`` from 0, and ``masks`` of each picture."""

    @abstractmethod
    def work(self, maps: dict[str, Tensor]) -> Tensor:
        """A number that every layer of a training step has a part in, of as much as a step can draw, for counting."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.settings.classes

    def forward(self, features: Features) -> Tensor:
        """Features -> losses, or what is found."""
        from torchvision.models.detection.image_list import ImageList

        found = self.fpn(OrderedDict((str(i), one) for i, one in enumerate(self.levels.maps(features))))
        given: Sequence[Objects] | None = features.condition
        with torch.autocast(next(iter(found.values())).device.type, enabled=False):  # coordinates need 24 bits
            maps = {name: one.float() for name, one in found.items()}
            size = len(next(iter(maps.values())))
            if self.training and given is None:
                return self.work(maps)
            images = ImageList(next(iter(maps.values())), [(self.side, self.side)] * size)
            if given is None:
                return self._padded(self.find(images, maps), maps)
            losses = self.learn(images, maps, [self._target(one) for one in given])
            return torch.stack([losses[name] for name in self.losses])

    def _target(self, one: Objects) -> dict[str, Tensor]:
        target = {"boxes": one.boxes.float(), "labels": one.labels}
        return target if one.masks is None else target | {"masks": one.masks}

    def _padded(self, found: list[dict[str, Tensor]], maps: dict[str, Tensor]) -> Tensor:
        """(B, most, columns); NaN where the maps of a picture are not finite."""
        columns = COLUMNS + self.has_masks * WORDS
        output = next(iter(maps.values())).new_zeros(len(found), self.settings.most, columns)
        output[..., COLUMNS - 1] = -1
        for row, one in enumerate(found):
            count = len(one["scores"])
            parts = [one["boxes"], one["scores"][:, None], one["labels"][:, None].float()]
            if self.has_masks:
                parts.append(packed(one["masks"][:, 0]))
            output[row, :count] = torch.cat(parts, dim=1)
        broken = torch.stack([~one.flatten(1).isfinite().all(dim=1) for one in maps.values()]).any(dim=0)
        output[broken] = math.nan
        return output


class RetinaNetHead(DetectionHead):
    """RetinaNet (arXiv 1708.02002): one step, on levels from stride 8 on, and two coarser ones."""

    losses = ("classification", "bbox_regression")

    def __init__(self, info: FeatureInfo, settings: Settings) -> None:
        super().__init__(info, settings)
        detection = detection_of_torchvision()
        sizes = [(settings.anchors or 4.0) * octave for octave in OCTAVES]
        anchors = Anchors(sizes, self.strides)
        backbone: Any = nn.Identity()
        backbone.out_channels = settings.channels
        layers = detection.retinanet.RetinaNetHead(settings.channels, anchors.count, settings.classes)
        layers.classification_head.compute_loss = focal_loss
        self.detector = detection.RetinaNet(
            backbone,
            settings.classes,
            head=layers,
            score_thresh=settings.score,
            nms_thresh=settings.overlap,
            detections_per_img=settings.most,
        )
        self.detector.anchor_generator = anchors

    def chosen(self, levels: list[tuple[Level, float]]) -> list[tuple[Level, float]]:
        """Without those finer than the finest, where that leaves two."""
        coarse = [(level, stride) for level, stride in levels if stride >= FINEST - 1]
        return coarse if len(coarse) > 1 else levels[-2:]

    def pyramid(self, widths: list[int]) -> nn.Module:
        """With two coarser levels."""
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

        channels = self.settings.channels
        return FeaturePyramidNetwork(widths, channels, LastLevelP6P7(channels, channels))

    def learn(self, images: Any, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """Focal loss and L1."""
        levels = list(maps.values())
        outputs, anchors = self.detector.head(levels), self.detector.anchor_generator(images, levels)
        found: Mapping[str, Tensor] = self.detector.compute_loss(targets, outputs, anchors)
        return found

    def find(self, images: Any, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Boxes by score, without those that overlap better ones."""
        levels, detector = list(maps.values()), self.detector
        counts = [one.shape[-2] * one.shape[-1] * detector.anchor_generator.count for one in levels]
        outputs = {name: list(one.split(counts, dim=1)) for name, one in detector.head(levels).items()}
        anchors = [list(one.split(counts)) for one in detector.anchor_generator(images, levels)]
        return detector.postprocess_detections(outputs, anchors, images.image_sizes)

    def work(self, maps: dict[str, Tensor]) -> Tensor:
        """All levels through the layers."""
        return torch.stack([one.float().mean() for one in self.detector.head(list(maps.values())).values()]).sum()


class FasterRCNNHead(DetectionHead):
    """Faster R-CNN with FPN (arXiv 1612.03144): regions, then their classes and boxes."""

    losses: ClassVar[tuple[str, ...]] = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")

    def __init__(self, info: FeatureInfo, settings: Settings) -> None:
        super().__init__(info, settings)
        detection, channels = detection_of_torchvision(), settings.channels
        anchors, most = Anchors([settings.anchors or 8.0], self.strides), {"training": 2000, "testing": 1000}
        self.regions = detection.rpn.RegionProposalNetwork(
            *(anchors, detection.rpn.RPNHead(channels, anchors.count)),
            *(0.7, 0.3, 256, 0.5, most, most, 0.7),
        )
        self.regions.anchor_generator = anchors
        self.detector = detection.roi_heads.RoIHeads(
            Later(self._pooling(POOLED)),
            BoxHead(channels * POOLED**2, 4 * channels),
            detection.faster_rcnn.FastRCNNPredictor(4 * channels, settings.classes + 1),
            *(0.5, 0.5, REGIONS, INSIDE / REGIONS, None),
            *(settings.score, settings.overlap, settings.most),
        )

    def _pooling(self, side: int) -> nn.Module:
        """Regions from the level that fits their size."""
        from torchvision.ops import poolers

        names = [str(number) for number in range(len(self.strides))]
        pool = poolers.MultiScaleRoIAlign(names, side, sampling_ratio=2)
        pool.scales = [1 / stride for stride in self.strides]  # torchvision would take powers of two
        first, last = (int(-math.log2(scale)) for scale in (pool.scales[0], pool.scales[-1]))
        pool.map_levels = poolers.initLevelMapper(first, max(last, first))
        return pool

    def pyramid(self, widths: list[int]) -> nn.Module:
        """With one coarser level, for regions alone."""
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        return FeaturePyramidNetwork(widths, self.settings.channels, LastLevelMaxPool())

    def learn(self, images: Any, maps: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """Of regions and of what is in them; torchvision's class 0 is the background."""
        targets = [one | {"labels": one["labels"] + 1} for one in targets]
        regions, of_regions = self.regions(images, maps, targets)
        _, losses = self.detector(maps, regions, images.image_sizes, targets)
        return {**of_regions, **losses}

    def find(self, images: Any, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """What is in the best regions."""
        regions, _ = self.regions(images, maps)
        found, _ = self.detector(maps, regions, images.image_sizes)
        return [one | {"labels": one["labels"] - 1} for one in found]

    def work(self, maps: dict[str, Tensor]) -> Tensor:
        """All levels, and as many regions as a step draws."""
        outputs = [part for parts in self.regions.head(list(maps.values())) for part in parts]
        pooled = self._drawn(maps, POOLED, REGIONS)
        outputs += self.detector.box_predictor(self.detector.box_head(pooled))
        return torch.stack([one.mean() for one in outputs]).sum()

    def _drawn(self, maps: dict[str, Tensor], side: int, count: int) -> Tensor:
        """As much as is pooled of ``count`` regions of each picture."""
        return F.interpolate(next(iter(maps.values())), (side, side)).repeat(count, 1, 1, 1)


class MaskRCNNHead(FasterRCNNHead):
    """Mask R-CNN (arXiv 1703.06870): the same with a mask of each object."""

    losses = (*FasterRCNNHead.losses, "loss_mask")
    has_masks = True

    def __init__(self, info: FeatureInfo, settings: Settings) -> None:
        super().__init__(info, settings)
        masks, channels = detection_of_torchvision().mask_rcnn, settings.channels
        self.detector.mask_roi_pool = self._pooling(OF_MASK)
        self.detector.mask_head = masks.MaskRCNNHeads(channels, (channels,) * 4, 1)
        layers = masks.MaskRCNNPredictor(channels, channels, settings.classes + 1).named_children()
        self.detector.mask_predictor = Again(OrderedDict(layers))

    def work(self, maps: dict[str, Tensor]) -> Tensor:
        """Also as many regions of objects as a step can draw; with fewer objects it draws fewer."""
        pooled = self._drawn(maps, OF_MASK, INSIDE)
        return super().work(maps) + self.detector.mask_predictor(self.detector.mask_head(pooled)).mean()


HEADS: dict[str, type[DetectionHead]] = {
    "retinanet": RetinaNetHead,
    "faster_rcnn": FasterRCNNHead,
    "mask_rcnn": MaskRCNNHead,
}
"""By the name used in ``task.head``."""


def packed(masks: Tensor) -> Tensor:
    """Probabilities (..., MASK, MASK) -> (..., WORDS) whole numbers below 2^24, three rounded to 8 bits in each."""
    levels = (255 * masks.flatten(-2).float()).round()
    levels = F.pad(levels, (0, WORDS * PACKED - levels.shape[-1])).unflatten(-1, (WORDS, PACKED))
    return levels[..., 0] + 256 * levels[..., 1] + 65536 * levels[..., 2]


def unpacked(words: Tensor) -> Tensor:
    """The inverse of :func:`packed`."""
    numbers = words.long()
    levels = torch.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], dim=-1).flatten(-2)
    return (levels[..., : MASK * MASK].float() / 255).unflatten(-1, (MASK, MASK))
