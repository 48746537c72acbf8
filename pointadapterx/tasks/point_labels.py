"""The labels of an input's points, joined from those of its pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.ragged import IGNORED
from pointadapterx.labelled_files import numbers_of
from pointadapterx.tasks.propagation import CHUNK, carry
from pointadapterx.text import cell

MOST_NAMED = 5  # classes in a line for the terminal


@dataclass(frozen=True)
class PointLabels:
    """The labels of one input's points by one adapter.

    Attributes:
        name: of the input.
        adapter: its name.
        classes: names.
        labels: (n,) int64, indices into ``classes``, a row of the input's file each; -1 for a row without a point.
        confidence: (n,) float32, probability of the label among those that were possible; 0 for a row without a point.
        warnings: in what the input differs from the training data.
        points: (n, 3) float64 in the units, axes and order of the file; NaN for a row without a point.
        values: the number that files have for each of the classes.
    """

    name: str
    adapter: str
    classes: list[str]
    labels: np.ndarray
    confidence: np.ndarray
    warnings: list[str]
    points: np.ndarray
    values: list[int]

    @property
    def numbers(self) -> np.ndarray:
        """(n,) int64, the labels as the training files number them, and as they are written; -1 for none, or less."""
        return numbers_of(self.labels, np.array(self.values, np.int64))

    def shares(self) -> list[tuple[str, float]]:
        """Classes of the points with their shares, the most frequent first."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return [(self.classes[k], float(counts[k] / max(1, counts.sum()))) for k in order if counts[k]]

    @property
    def mean_confidence(self) -> float:
        """Over the points."""
        known = self.labels >= 0
        return float(self.confidence[known].mean(dtype=np.float64)) if known.any() else 0.0

    def text(self) -> str:
        """How many points are what, and how sure that is."""
        shares = self.shares()
        named = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares[:MOST_NAMED])
        more = ", …" if len(shares) > MOST_NAMED else ""
        return f"{named}{more} of {int((self.labels >= 0).sum()):,} points; confidence {self.mean_confidence:.2f}"

    def cells(self, top: int) -> list[str]:
        """Number of points, the most frequent classes with their shares, and the mean confidence."""
        ranked = [text for name, share in self.shares()[:top] for text in (cell(name), f"{share:.6f}")]
        filled = [*ranked, *[""] * (2 * top - len(ranked))]
        return [str(int((self.labels >= 0).sum())), *filled, f"{self.mean_confidence:.6f}"]

    def content(self) -> dict[str, Any]:
        """All but the name and the points; the names of those classes that occur, by label."""
        return {
            "adapter": self.adapter,
            "classes": {str(k): self.classes[k] for k in np.unique(self.labels[self.labels >= 0]).tolist()},
            "labels": self.labels.tolist(),
            "confidence": [round(value, 4) for value in self.confidence.tolist()],
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class PieceLogits(PointLabels):
    """The same of the points of one piece, as the model takes them.

    Attributes:
        logits: (N, classes) float32.
        places: (N,) int64, which points of the whole cloud they are; a point may occur several times.
        allowed: (classes,) bool, what a point may be; None: all.
    """

    logits: Tensor
    places: Tensor
    allowed: Tensor | None


class JoinedPoints:
    """Logits of the points of all pieces -> a label for each row of the file; see :meth:`PointSegmentation.joining`.

    A point that several pieces have gets the mean of its logits, one that none has those of the three nearest that
    have some. In memory are the logits of those that have some; the rest is done a bounded number at a time.
    """

    def __init__(self, cloud: Cloud, classes: int) -> None:
        self.cloud = cloud
        self.points = torch.from_numpy(np.ascontiguousarray(cloud.points, dtype=np.float64))
        self.total = torch.zeros(len(self.points), classes)  # the system gives pages where something is added
        self.times = torch.zeros(len(self.points))
        self.first: PieceLogits | None = None
        self.warnings: dict[str, None] = {}

    def add(self, answer: PieceLogits) -> None:
        """The logits of a piece."""
        self.first = self.first or answer
        self.warnings |= dict.fromkeys(answer.warnings)
        self.total.index_add_(0, answer.places, answer.logits)
        self.times.index_add_(0, answer.places, torch.ones(len(answer.places)))

    def joined(self) -> PointLabels:
        """Labels and confidence of all points."""
        first = self.first
        assert first is not None, "a cloud has at least one piece"
        count = len(self.points)
        labels, confidence = torch.empty(count, dtype=torch.int64), torch.empty(count)
        for rows, logits in self._logits():
            labels[rows], confidence[rows] = decided(logits, first.allowed)
        kept, points = self.cloud.kept, self.cloud.points
        if kept is not None:
            labels, confidence, points = (
                _at_rows(part, kept, blank)
                for part, blank in ((labels, IGNORED), (confidence, 0.0), (torch.from_numpy(points), float("nan")))
            )
            points = points.numpy()
        named = first.name, first.adapter, first.classes, labels.numpy(), confidence.numpy(), list(self.warnings)
        return PointLabels(*named, points, first.values)

    def _logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some points (m,) and their logits (m, classes) at a time."""
        has = self.times > 0
        for rows in has.nonzero().flatten().split(CHUNK):
            yield rows, self.total[rows] / self.times[rows, None]
        if bool(has.all()):
            return
        values, known = self.total[has], self.points[has]
        values /= self.times[has, None]  # a copy
        for rows in (~has).nonzero().flatten().split(8 * CHUNK):
            yield rows, carry(values, known, self.points[rows])


def decided(logits: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The label of each point, and its probability.

    Args:
        logits: (..., classes).
        allowed: what a point may be, bool, to be broadcast to the logits; None: all.

    Returns:
        (...) int64 and float32.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    confidence, labels = logits.softmax(dim=-1).max(dim=-1)
    return labels, confidence


def _at_rows(values: Tensor, kept: np.ndarray, blank: float) -> Tensor:
    found = torch.full((len(kept), *values.shape[1:]), blank, dtype=values.dtype)
    found[torch.from_numpy(kept)] = values
    return found
