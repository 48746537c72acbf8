"""What is said of the objects of one picture, and how it is drawn and written."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.images import read_picture
from pointadapterx.datasets.outlines import masks_of_coco
from pointadapterx.files import replacing, write_text
from pointadapterx.text import cell, printable

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Of classes, again and again: those of Okabe and Ito, which everyone can distinguish."""
BRIGHT = ("#e69f00", "#56b4e9", "#f0e442")
"""Those that black letters are read on."""
VEIL = 0.45  # of its colour over what belongs to an object
BESIDE = ("class", "score", "left", "top", "right", "bottom")
"""Columns of a file of boxes."""


@dataclass(frozen=True)
class Detected:
    """The objects that one adapter finds in one picture, the surest first.

    Attributes:
        name: of the picture's file.
        adapter: its name.
        warnings: in what the picture differs from the training data.
        classes: name of each object's class.
        numbers: of these classes, from 0.
        scores: from 0 to 1.
        boxes: left, top, right, bottom in pixels of the file.
        masks: run lengths of each in COCO's form; None where the head finds boxes alone.
        size: width and height of the file.
    """

    name: str
    adapter: str
    warnings: list[str]
    classes: list[str]
    numbers: list[int]
    scores: list[float]
    boxes: list[list[float]]
    masks: list[dict[str, Any]] | None
    size: tuple[int, int]

    def text(self) -> str:
        """How many objects of each class."""
        counts = Counter(self.classes)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"

    def cells(self, top: int) -> list[str]:
        """Their number, and each with score and box."""
        lines = (
            f"{name} {score:.3f} {' '.join(f'{edge:.1f}' for edge in box)}"
            for name, score, box in zip(self.classes, self.scores, self.boxes, strict=True)
        )
        return [str(len(self.classes)), cell("; ".join(lines))]

    def content(self) -> dict[str, Any]:
        """Objects one by one."""
        masks: Sequence[dict[str, Any] | None] = [None] * len(self.classes) if self.masks is None else self.masks
        objects = [
            {"class": name, "score": round(score, 6), "box": [round(edge, 2) for edge in box]}
            | ({} if mask is None else {"mask": mask})
            for name, score, box, mask in zip(self.classes, self.scores, self.boxes, masks, strict=True)
        ]
        return {"adapter": self.adapter, "objects": objects, "warnings": self.warnings}

    def results(self, picture: int | str, categories: Sequence[int]) -> list[dict[str, Any]]:
        """As COCO's results have them.

        Args:
            picture: what the picture is called in them.
            categories: number there of each class.
        """
        masks: Sequence[dict[str, Any] | None] = [None] * len(self.classes) if self.masks is None else self.masks
        return [
            {
                "image_id": picture,
                "category_id": categories[number],
                "bbox": [round(value, 2) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
                "score": round(score, 6),
            }
            | ({} if mask is None else {"segmentation": mask})
            for number, score, box, mask in zip(self.numbers, self.scores, self.boxes, masks, strict=True)
        ]

    def write(self, path: Path, kind: str, classes: int) -> None:
        """Writes a file of its own: the picture with boxes, COCO's results, or a table.

        Args:
            path: to write.
            kind: ``".png"``, ``".json"`` or ``".csv"``.
            classes: how many there are.
        """
        if kind == ".json":
            entries = self.results(Path(self.name).stem, range(1, classes + 1))
            named = [entry | {"category": name} for entry, name in zip(entries, self.classes, strict=True)]
            write_text(path, f"{json.dumps(named)}\n")
        elif kind == ".csv":
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerow(BESIDE)
            for name, score, box in zip(self.classes, self.scores, self.boxes, strict=True):
                writer.writerow([cell(name), f"{score:.6f}", *(f"{edge:.2f}" for edge in box)])
            write_text(path, text.getvalue())
        else:
            self._write_picture(path)

    def _write_picture(self, path: Path) -> None:
        from PIL import Image  # slow to import

        pixels = read_picture(Path(self.name), None, 3).pixels.transpose(1, 2, 0)
        texts = [f"{name} {score:.2f}" for name, score in zip(self.classes, self.scores, strict=True)]
        drawn = with_objects(pixels, self.boxes, self.numbers, texts, self.masks)
        with replacing(path) as temporary:
            Image.fromarray(drawn).save(temporary, "png")


def with_objects(
    pixels: np.ndarray,
    boxes: Sequence[Sequence[float]],
    numbers: Sequence[int],
    texts: Sequence[str] = (),
    masks: Sequence[Any] | None = None,
) -> np.ndarray:
    """A picture (H, W, 3) uint8 with boxes, and colour over masks; a new array.

    Args:
        pixels: of the picture.
        boxes: left, top, right, bottom of each object in its pixels.
        numbers: of the classes of the objects.
        texts: above the boxes.
        masks: run lengths, one an object.
    """
    from PIL import Image, ImageDraw, ImageFont

    colours = [COLOURS[number % len(COLOURS)] for number in numbers]
    shown = pixels.astype(np.float32)
    for mask, colour in zip(masks or (), colours, strict=False):
        inside = masks_of_coco().decode(mask).astype(bool)
        shown[inside] = (1 - VEIL) * shown[inside] + VEIL * np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    picture = Image.fromarray(shown.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    longest = max(picture.size)
    width, font = max(1, round(longest / 240)), ImageFont.load_default(max(10, round(longest / 40)))
    for place in reversed(range(len(boxes))):  # the surest on top
        left, top, right, bottom = boxes[place]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colours[place], width=width)
        if texts:
            text = printable(texts[place])
            corner = left, max(0, top - font.getbbox(text)[3])
            draw.rectangle(draw.textbbox(corner, text, font=font), fill=colours[place])
            draw.text(corner, text, fill="black" if colours[place] in BRIGHT else "white", font=font)
    return np.asarray(picture)
