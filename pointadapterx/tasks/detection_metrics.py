"""How well objects are found: COCO's and VOC's average precision, with intervals over the pictures."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapterx.datasets.objects import Objects
from pointadapterx.datasets.outlines import encoded, runs_of
from pointadapterx.tasks.detection_heads import COLUMNS, MASK, unpacked
from pointadapterx.tasks.presentation import FEWEST_UNITS

AREAS = ("all", "small", "medium", "large")  # of objects, in COCO's order: below 32², up to 96², above
HALF, THREE_QUARTERS = 0, 5  # numbers of the IoU thresholds 0.50 and 0.75
MOST = 100  # detections of a class in a picture that count
DRAWS = 300  # resamples of the pictures for an interval
RECALLS = np.linspace(0.0, 1.0, 101)  # at which COCO reads the precision


class Found(NamedTuple):
    """What was found in one picture.

    Attributes:
        boxes: (k, 4) float32, in pixels of the picture's file.
        scores: (k,).
        labels: (k,) int64.
        masks: run lengths of each; None where no masks are found.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[dict[str, Any]] | None


def found_in(row: Tensor, size: tuple[int, int], *, masks: bool = True) -> Found:
    """What a row of detections says.

    Args:
        row: (most, columns) of :class:`~pointadapterx.tasks.detection_heads.DetectionHead`, with boxes in pixels of the
            picture's file.
        size: width and height of the picture.
        masks: whether to paste them, where there are some.
    """
    kept = row[row[:, COLUMNS - 1] >= 0]
    boxes, scores, labels = kept[:, :4], kept[:, 4], kept[:, 5].long()
    if row.shape[1] == COLUMNS or not masks:
        return Found(boxes, scores, labels, None)
    return Found(boxes, scores, labels, list(_pasted(unpacked(kept[:, COLUMNS:]), boxes, size)))


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Probabilities (k, MASK, MASK) in boxes as run lengths in the picture, one mask at a time."""
    for mask, box in zip(F.pad(masks, (1, 1, 1, 1)), boxes, strict=True):
        yield encoded(pasted(mask, box, size))


def pasted(mask: Tensor, box: Tensor, size: tuple[int, int]) -> np.ndarray:
    """What torchvision's ``paste_masks_in_image`` and a threshold of one half make of a mask, in less memory.

    Args:
        mask: (MASK + 2, MASK + 2), probabilities with a border of 0.
        box: (4,).
        size: width and height of the picture.

    Returns:
        (height, width) uint8.
    """
    grown = (len(mask) / MASK) * (box[2:] - box[:2]) / 2
    middle = (box[:2] + box[2:]) / 2
    left, top, right, bottom = torch.cat([middle - grown, middle + grown]).long().tolist()
    shape = max(bottom - top + 1, 1), max(right - left + 1, 1)
    inside = F.interpolate(mask[None, None], shape, mode="bilinear", align_corners=False)[0, 0] > 0.5
    picture = np.zeros((size[1], size[0]), np.uint8)
    (x, wide), (y, tall) = (
        (max(low, 0), min(high + 1, edge)) for low, high, edge in zip((left, top), (right, bottom), size, strict=True)
    )
    if wide > x and tall > y:
        picture[y:tall, x:wide] = inside[y - top : tall - top, x - left : wide - left].numpy()
    return picture


def measure(rows: Tensor, objects: Objects, classes: Sequence[str], groups: Tensor | None = None) -> dict[str, Any]:
    """Average precision of boxes, and of masks where both sides have some.

    COCO's AP counts the :data:`MOST` surest of a class in a picture, as COCO does.

    Args:
        rows: (n, most, columns), see :func:`found_in`.
        objects: of the same n pictures.
        classes: names.
        groups: (n,), equal for pictures of one scene, which intervals draw together; None: each is its own.

    Returns:
        JSON-able: ``ap``, ``ap50``, ``ap75`` and ``voc_ap50`` in %, ``intervals`` of these, ``sizes`` with the AP of
        small, medium and large objects, ``per_class``, ``masks`` with the same of masks, and numbers. An AP that no
        object defines is None, and 0 among the first four.
    """
    sizes = [(width, height) for width, height in objects.sizes.tolist()]
    truths = objects.outlines is not None and rows.shape[2] > COLUMNS
    found = [found_in(row, size, masks=truths) for row, size in zip(rows, sizes, strict=True)]
    truth = list(_truth(objects, truths))
    units = np.arange(len(sizes)) if groups is None else np.unique(groups.numpy(), return_inverse=True)[1]
    boxes = _measured(found, truth, sizes, classes, "bbox", units)
    labels, known = objects.labels, ~objects.ignored
    voc = voc_aps(found, objects, len(classes))
    counts = {name: int(((labels == number) & known).sum()) for number, name in enumerate(classes)}
    result = {
        **{key: boxes[key] or 0.0 for key in ("ap", "ap50", "ap75")},
        "voc_ap50": _mean(voc) or 0.0,
        "intervals": boxes["intervals"],
        "sizes": boxes["sizes"],
        "per_class": {
            name: {"count": counts[name], "voc_ap50": voc[number], **boxes["per_class"][name]}
            for number, name in enumerate(classes)
        },
        "objects": int(known.sum()),
        "found": sum(len(one.scores) for one in found),
        "count": len(rows),
    }
    if truths:
        result["masks"] = _measured(found, truth, sizes, classes, "segm", units)
    return result


def _truth(objects: Objects, outlined: bool) -> Iterator[dict[str, Any]]:
    """What is true, one object after the other, as COCO writes it.

    The area, by which COCO calls an object small or large, is what its annotation says, or else that of its outline, or
    else of its box.
    """
    for number, picture in enumerate(objects.picture.tolist()):
        left, top, right, bottom = objects.boxes[number].tolist()
        one: dict[str, Any] = {
            "id": number + 1,
            "image_id": picture,
            "category_id": int(objects.labels[number]),
            "bbox": [left, top, right - left, bottom - top],
            "area": float(objects.areas[number]),
            "iscrowd": int(objects.ignored[number]),
        }
        unsaid = math.isnan(one["area"])
        if objects.outlines is not None and (outlined or unsaid):
            width, height = objects.sizes[picture].tolist()
            runs = runs_of(objects.outlines[number], width, height, f"picture {picture}")
            one |= {"segmentation": runs, "area": _area(runs) if unsaid else one["area"]}
        elif unsaid:
            one["area"] = (right - left) * (bottom - top)
        yield one


def _area(runs: Mapping[str, Any]) -> float:
    from pycocotools import mask

    return float(mask.area(runs))


def detections(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What was found, one object after the other, as COCO's results have it; pictures and classes by their number."""
    results = []
    for picture, one in enumerate(found):
        for place, (box, score, label) in enumerate(
            zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
        ):
            left, top, right, bottom = box
            entry = {
                "image_id": picture,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            if one.masks is not None:
                entry["segmentation"] = one.masks[place]
            results.append(entry)
    return results


def _measured(
    found: Sequence[Found],
    truth: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    kind: str,
    units: np.ndarray,
) -> dict[str, Any]:
    """COCO's numbers of boxes (``bbox``) or masks (``segm``)."""
    evaluated = _evaluated(found, truth, sizes, classes, kind)
    precision = evaluated.eval["precision"][..., -1]  # (IoU, recall, class, area)

    def ap(*, iou: int | slice = slice(None), of: int | slice = slice(None), area: int = 0) -> float | None:
        values = precision[iou, :, of, area]
        values = values[values > -1]
        return float(100 * values.mean()) if values.size else None

    curves = [Curve.of(evaluated, number) for number in range(len(classes))]
    return {
        "ap": ap(),
        "ap50": ap(iou=HALF),
        "ap75": ap(iou=THREE_QUARTERS),
        "sizes": {name: ap(area=number) for number, name in enumerate(AREAS) if number},
        "per_class": {
            name: {"ap": ap(of=number), "ap50": ap(iou=HALF, of=number)} for number, name in enumerate(classes)
        },
        "intervals": intervals([curve for curve in curves if curve is not None], units),
    }


def _evaluated(
    found: Sequence[Found],
    truth: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    kind: str,
) -> Any:
    """pycocotools' evaluation, with what it matched in every picture."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": number, "width": w, "height": h} for number, (w, h) in enumerate(sizes)],
            "annotations": [dict(one) for one in truth],
            "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        }
        known.createIndex()
        results = detections(found)
        answers = known.loadRes(results) if results else COCO()
        if not results:
            answers.dataset = {**known.dataset, "annotations": []}
            answers.createIndex()
        evaluation = COCOeval(known, answers, kind)
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


class Curve(NamedTuple):
    """What was found of one class, surest first, and how often there is something to find.

    Attributes:
        picture: (k,) of each detection.
        right: (IoU thresholds, k) bool.
        wrong: (IoU thresholds, k) bool; what hits something that is ignored is neither.
        truths: (n,) objects of each picture.
    """

    picture: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    truths: np.ndarray

    @classmethod
    def of(cls, evaluated: Any, number: int) -> Curve | None:
        """That of a class; None where no picture has one of its objects."""
        images, areas = len(evaluated.params.imgIds), len(evaluated.params.areaRng)
        first = number * areas * images  # its pictures, of objects of all sizes
        matched = evaluated.evalImgs[first : first + images]
        truths = np.zeros(images)
        pictures, scores, hits, ignored = [], [], [], []
        for picture, one in enumerate(matched):
            if one is None:
                continue
            truths[picture] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
            pictures.append(np.full(len(one["dtScores"]), picture))
            scores.append(np.asarray(one["dtScores"], dtype=float))
            hits.append(np.asarray(one["dtMatches"]) > 0)
            ignored.append(np.asarray(one["dtIgnore"]).astype(bool))
        if not truths.any():
            return None
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        hit, without = np.concatenate(hits, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
        return cls(np.concatenate(pictures)[order], hit & ~without, ~hit & ~without, truths)

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """AP at each threshold, (IoU thresholds, draws), where each picture counts ``weights`` (draws, n) times.

        NaN where a draw has no object of the class.
        """
        of_each = weights[:, self.picture]  # (draws, k)
        truths = (weights @ self.truths)[:, None]
        found = np.full((len(self.right), len(weights)), np.nan)
        there = truths[:, 0] > 0
        for threshold, (right, wrong) in enumerate(zip(self.right, self.wrong, strict=True)):
            hits, misses = np.cumsum(of_each * right, axis=1), np.cumsum(of_each * wrong, axis=1)
            precision = hits / np.maximum(hits + misses, np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALLS, hits / np.maximum(truths, 1), side="right")
            first = np.diff(reached, axis=1, prepend=0)
            found[threshold, there] = ((first * best).sum(axis=1) / len(RECALLS))[there]
        return found


def intervals(curves: Sequence[Curve], units: np.ndarray) -> dict[str, list[float]]:
    """95 % bootstrap intervals of AP, AP50 and AP75 in %; empty without an object, or of fewer than
    :data:`~pointadapterx.tasks.presentation.FEWEST_UNITS` scenes.

    Args:
        curves: of the classes that have objects.
        units: (n,), the number of each picture's scene, from 0; scenes are drawn as a whole.
    """
    count = len(set(units.tolist()))
    if not curves or count < FEWEST_UNITS:
        return {}
    drawn_units = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    weights = drawn_units[:, units].astype(float)
    of_classes = 100 * np.stack([curve.ap(weights) for curve in curves])  # (classes, IoU, draws)
    of_classes = of_classes[..., ~np.isnan(of_classes).all(axis=(0, 1))]  # draws with an object
    with np.errstate(invalid="ignore"):
        drawn = {
            "ap": np.nanmean(of_classes, axis=(0, 1)),
            "ap50": np.nanmean(of_classes[:, HALF], axis=0),
            "ap75": np.nanmean(of_classes[:, THREE_QUARTERS], axis=0),
        }
    return {name: [float(edge) for edge in np.nanquantile(values, [0.025, 0.975])] for name, values in drawn.items()}


def voc_aps(found: Sequence[Found], objects: Objects, classes: int) -> list[float | None]:
    """VOC's AP of each class in % at an IoU of 0.5, by all points of the curve (2010 on); None without an object.

    A detection counts for the object that it overlaps most, the surest one first; what hits a difficult object, or a
    crowd, is left out.

    Args:
        found: in every picture.
        objects: in these.
        classes: their number.
    """
    rows: list[list[tuple[float, int]]] = [[] for _ in range(classes)]  # score, and 1 right, 0 wrong
    starts = objects.starts.tolist()
    for picture, one in enumerate(found):
        own = slice(starts[picture], starts[picture + 1])
        labels, ignored = objects.labels[own].tolist(), objects.ignored[own].tolist()
        same = one.labels[:, None] == objects.labels[own][None]
        overlaps = iou(one.boxes, objects.boxes[own]).masked_fill(~same, -1.0)
        best, places = (part.tolist() for part in overlaps.max(dim=1)) if labels else ([], [])
        scores, kinds, taken = one.scores.tolist(), one.labels.tolist(), set[int]()
        for number in one.scores.argsort(descending=True, stable=True).tolist():
            place = places[number] if labels and best[number] >= 0.5 else -1
            if place < 0 or not ignored[place]:
                rows[kinds[number]].append((scores[number], int(place >= 0 and place not in taken)))
                taken.add(place)
    totals = objects.labels[~objects.ignored].bincount(minlength=classes).tolist()
    return [_voc_ap(own, total) for own, total in zip(rows, totals, strict=True)]


def _voc_ap(rows: Sequence[tuple[float, int]], total: int) -> float | None:
    """The AP of (score, right) in %, where there are ``total`` objects."""
    if not total:
        return None
    if not rows:
        return 0.0
    scores, hits = (np.array(part) for part in zip(*rows, strict=True))
    ranked = hits[np.argsort(-scores, kind="stable")]
    recall, precision = np.cumsum(ranked) / total, np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100 * (np.diff(recall, prepend=0.0) * envelope).sum())


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Boxes (k, 4) and (m, 4) -> (k, m)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(part[:, 2:] - part[:, :2]).clamp(min=0).prod(dim=-1) for part in (boxes, others)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp(min=1e-12)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
