"""What all clouds of a prediction say together: doubts about single ones, and whether another axis points up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pointadapterx.datasets.base import AXES
from pointadapterx.datasets.preparation import mean_extents
from pointadapterx.engine.input_form import Form

ENOUGH_FOR_AXES = 8  # clouds before anything is said of which axis points up
BETTER = 0.5  # of the deviation from the training set's extents, that another axis must leave


class Seen:
    """Counts over clouds, which can be added to those of others."""

    def __init__(self) -> None:
        self._extents, self._clouds = torch.zeros(3), 0  # sum and number of all so far
        self._doubts = Counter[str]()  # clouds with each kind of doubt

    def take(self, points: Tensor, doubts: Iterable[str]) -> None:
        """Counts a cloud: its prepared points (N, 3), and the kinds of doubt about it."""
        self._doubts.update(set(doubts))
        self._extents += mean_extents(points[None])
        self._clouds += 1

    def content(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"extents": self._extents.tolist(), "clouds": self._clouds, "doubts": dict(self._doubts)}

    def add(self, content: Mapping[str, Any]) -> None:
        """Counts what another has counted, as its :meth:`content` says it."""
        self._extents += torch.tensor(content["extents"])
        self._clouds += content["clouds"]
        self._doubts.update(content["doubts"])

    def lines(self, form: Form) -> list[str]:
        """Doubts about single clouds, and differences of all of them from the training clouds.

        Args:
            form: that the clouds were prepared in.
        """
        counted = [f"{count} of {self._clouds} clouds: {kind}" for kind, count in self._doubts.items()]
        return counted + self._of_axes(form)

    def _of_axes(self, form: Form) -> list[str]:
        stored = form.stored
        if stored is None or self._clouds < ENOUGH_FOR_AXES:
            return []
        found, wanted = self._extents / self._clouds, torch.tensor(stored.extents)
        deviation = [float((found.roll(turn) - wanted).norm()) for turn in range(3)]
        best = min(range(3), key=deviation.__getitem__)
        if best == 0 or deviation[best] > BETTER * deviation[0]:
            return []
        axis = AXES[(AXES.index(form.up) - best) % 3]
        return [
            f"the clouds are shaped as if {axis} pointed up, not {form.up}; if so, give it as up (--up {axis})",
        ]
