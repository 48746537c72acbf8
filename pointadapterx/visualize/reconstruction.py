"""Masked reconstruction: the groups that an autoencoder does not see, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pointadapterx.arrays import as_array
from pointadapterx.models.grouping import Groups
from pointadapterx.text import printable
from pointadapterx.visualize.colours import GREY, KINDS, rgb
from pointadapterx.visualize.drawing import Sheet, View

HIDDEN, PREDICTED = rgb(KINDS[0]), rgb(KINDS[5])


def reconstruction_sheet(groups: Groups, mask: Tensor, predicted: Tensor, names: Sequence[str] | None = None) -> Sheet:
    """One row a cloud: the visible groups, these with the predicted ones, and the truth.

    Args:
        groups: of B clouds, on the CPU.
        mask: (B, G) bool, True where a group was hidden.
        predicted: (hidden groups of the batch, k, 3), relative to their centres.
        names: B titles.
    """
    truth = groups.neighborhood + groups.centers.unsqueeze(2)  # (B, G, k, 3)
    restored = truth.clone()
    restored[mask] = predicted + groups.centers[mask].unsqueeze(1)
    rows = []
    for row, hidden in enumerate(mask):
        name = "" if names is None else f"{printable(names[row])}: "
        visible = as_array(truth[row][~hidden].flatten(0, 1))
        views = [View(f"{name}visible", visible, _grey(len(visible)))]
        for title, cloud, colour in (("predicted", restored, PREDICTED), ("truth", truth, HIDDEN)):
            others = as_array(cloud[row][hidden].flatten(0, 1))
            colours = np.concatenate([_grey(len(visible)), np.tile(colour, (len(others), 1))])
            views.append(View(title, np.concatenate([visible, others]), colours))
        rows.append(views)
    legend = [("visible", rgb(GREY)), ("predicted", PREDICTED), ("hidden", HIDDEN)]
    return Sheet("Masked reconstruction", rows, legend=legend)


def _grey(count: int) -> np.ndarray:
    return np.tile(rgb(GREY), (count, 1))
