"""The class of every pixel of a picture: the answer, its files and their colours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapterx.files import replacing
from pointadapterx.palette import label_colours
from pointadapterx.text import cell

MOST_VALUES = 2**25  # logits of the pixels of a picture that are in memory at a time
SHOWN = 3  # classes in a line on the terminal


@dataclass(frozen=True)
class PixelLabels:
    """The class of every pixel of a picture.

    Attributes:
        name: of the picture.
        adapter: name of the adapter.
        warnings: in what the picture differs from the training data.
        labels: (H, W) uint8, numbers of classes, in the size of the file's picture.
        confidence: (H, W) float16, probability of that class.
        classes: their names.
    """

    name: str
    adapter: str
    warnings: list[str]
    labels: np.ndarray
    confidence: np.ndarray
    classes: list[str]

    def shares(self) -> list[tuple[str, float]]:
        """Classes that occur and their share of the pixels, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes)) / self.labels.size
        order = np.argsort(-counts, kind="stable")
        return [(self.classes[number], float(counts[number])) for number in order if counts[number] > 0]

    @property
    def sure(self) -> float:
        """Mean confidence."""
        return float(self.confidence.mean(dtype=np.float64))

    def text(self) -> str:
        """The largest classes, and the mean confidence."""
        ranked = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.shares()[:SHOWN])
        return f"{ranked}; confidence {self.sure:.2f}"

    def cells(self, top: int) -> list[str]:
        """Classes and shares by rank, and the mean confidence."""
        ranked = [text for name, share in self.shares()[:top] for text in (cell(name), f"{share:.6f}")]
        return [*ranked, *[""] * (2 * top - len(ranked)), f"{self.sure:.4f}"]

    def content(self) -> dict[str, Any]:
        """Size, shares and mean confidence; the labels themselves are in files of their own."""
        return {
            "adapter": self.adapter,
            "size": list(self.labels.shape),
            "shares": dict(self.shares()),
            "confidence": self.sure,
            "warnings": self.warnings,
        }

    def write(self, path: Path, kind: str) -> None:
        """Labels with a palette as ``.png``, or labels, confidence and classes as ``.npz``."""
        if kind == ".npz":
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(
                    file, labels=self.labels, confidence=self.confidence, classes=np.array(self.classes)
                )
            return
        from PIL import Image, PngImagePlugin  # slow to import

        image = Image.fromarray(self.labels)
        image.putpalette(label_colours(len(self.classes)).ravel().tolist())
        about = PngImagePlugin.PngInfo()
        about.add_text("classes", json.dumps(self.classes))
        with replacing(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=about)


def likeliest(logits: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class of each pixel of a picture, and its probability.

    A few classes are enlarged at a time, so that large pictures with many classes fit into memory.

    Args:
        logits: (classes, h, w).
        size: height and width of the picture.

    Returns:
        (H, W) uint8 and float16.
    """
    at_once = max(1, MOST_VALUES // (size[0] * size[1]))
    best, total = torch.full(size, -torch.inf), torch.full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.uint8)
    first = 0
    for part in logits.split(at_once):
        large = F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]
        highest, number = large.max(dim=0)
        labels = torch.where(highest > best, (number + first).to(torch.uint8), labels)
        best, total = torch.maximum(best, highest), torch.logaddexp(total, large.logsumexp(dim=0))
        first += len(part)
    return labels.numpy(), (best - total).exp().half().numpy()
